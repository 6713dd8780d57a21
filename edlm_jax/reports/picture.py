"""What all pictures share: their style, weight drift by layer, and how one is written."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

AR_COLOUR = "#3d405b"
DRIFT_COLOURS = {"attention": "#e07a5f", "ffn": "#81b29a"}
_STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "font.size": 9,
}


@contextlib.contextmanager
def picture(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches to draw on, which is written to the path at the end."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.savefig(path, dpi=130)


def draw_drift(axes, drift: Mapping[str, Any]) -> None:
    """{group: {relative: of each layer}} as curves."""
    for group, found in drift.items():
        axes.plot(found["relative"], "o-", color=DRIFT_COLOURS[group], label=group)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title="Weight drift from the AR model", xlabel="layer", ylabel="|change| / |before|", ylim=(0, None))
    axes.legend()
