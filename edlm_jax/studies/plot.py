"""NAME.png: accuracy of every arm over what the study is about, with standard errors; weight drift beside it."""

from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.lines import Line2D

from edlm_jax.reports.picture import AR_COLOUR, DRIFT_COLOURS, picture
from edlm_jax.studies.results import PLACE, Results, before

_AXES = {  # their labels, and what they take of a point's place
    "tokens_per_forward": ("tokens per denoising forward", "threshold"),
    "step": ("training step", "step"),
    "block_length": ("block length of decoding", "block_length"),
}
# {(arm, whatever else varies beside the axis): points}
Curves = dict[tuple[str, str], list[dict[str, Any]]]
_INSIDE = 10  # entries of a legend that curves leave room for
_MARKERS, _LINES = "os^DvPX", ("-", "--", ":", "-.", (0, (1, 3)))


def plot_study(results: Results, path: Path) -> None:
    """Draw the curves; where no arm changes the AR weights, their legend stands in the place of the drift."""
    measured = [arm["measures"][-1] for arm in results["arms"]]
    moved = any(measures[f"drift_{group}"]["mean"] for measures in measured for group in DRIFT_COLOURS)
    with picture(path, 12, 5) as figure:
        accuracy, drift = figure.subplots(1, 2, width_ratios=(2, 1))
        handles = _accuracy(accuracy, results)
        if not moved:
            accuracy.legend(handles=handles, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
            drift.set_axis_off()
            return
        _drift(drift, results)
        if len(handles) > _INSIDE:
            figure.set_figheight(6)
            figure.legend(handles=handles, fontsize=7, ncols=4, loc="outside lower left")
        else:
            accuracy.legend(handles=handles, fontsize=7)


def curves(results: Results) -> Curves:
    """Points with "x", in its order: a curve for each arm and for each place where arms are measured."""
    axis = results["x"]
    _, taken = _AXES.get(axis, (axis, "arm"))
    flat = [{"arm": arm["arm"], **arm["changes"], **point} for arm in results["arms"] for point in arm["points"]]
    names = [name for name in ("arm", *PLACE) if name != taken]
    varying = [name for name in names if len({point[name] for point in flat}) > 1]
    found: Curves = {}
    for point in flat:
        place = [(name, point[name]) for name in varying if name != "arm" and point[name] is not None]
        rest = ", ".join(value if isinstance(value, str) else f"{name} {value:g}" for name, value in place)
        x = point[axis]["mean"] if axis == "tokens_per_forward" else point[axis]
        found.setdefault((point["arm"] if "arm" in varying else "", rest), []).append(point | {"x": x})
    return {key: sorted(points, key=lambda point: point["x"]) for key, points in found.items()}


def _accuracy(axes, results: Results) -> list[Artist]:
    """Colours are arms where there are several, markers and lines the rest; returns what the legend explains."""
    found = curves(results)
    arms, places = (list(dict.fromkeys(labels)) for labels in zip(*found, strict=True))
    label, _ = _AXES.get(results["x"], (results["x"], "arm"))
    several, ticks = len(arms) > 1, sorted({p["x"] for points in found.values() for p in points})
    coloured = arms if several else places
    palette = matplotlib.colormaps["tab10" if len(coloured) < 10 else "tab20"].colors
    palette = [rgb for rgb in palette if len(set(rgb)) > 1]  # grey is no arm: it explains the markers
    colours = dict(zip(coloured, cycle(palette), strict=False))
    looks = zip(places, cycle(_MARKERS), cycle(_LINES), strict=False)
    styles = {place: dict(marker=marker, linestyle=line) for place, marker, line in looks}
    for (arm, place), points in found.items():
        errors = [point["accuracy"]["standard_error"] or 0.0 for point in points]
        values = [point["accuracy"]["mean"] for point in points]
        colour = colours[arm if several else place]
        axes.errorbar([p["x"] for p in points], values, errors, capsize=2, color=colour, **styles[place])
    ar = axes.axhline(results["ar"]["accuracy"], color=AR_COLOUR, linestyle="--", linewidth=1, label=before(results))
    if results["x"] != "tokens_per_forward" and ticks[0] > 0:
        axes.set_xscale("log", base=2 if results["x"] in _AXES else 10)
        axes.set_xticks(ticks)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    axes.set(title="Accuracy", xlabel=label, ylabel="share that is right")
    lines = [Line2D([], [], color=colours[arm], linewidth=3, label=arm) for arm in arms if several]
    of_places = dict.fromkeys(places, "grey") if several else colours
    lines += [Line2D([], [], color=of_places[place], label=place, **styles[place]) for place in places if place]
    return [ar, *lines]


def _drift(axes, results: Results) -> None:
    """The last measured step's, a pair of bars for each arm."""
    for offset, (group, colour) in enumerate(DRIFT_COLOURS.items()):
        values = [arm["measures"][-1][f"drift_{group}"]["mean"] for arm in results["arms"]]
        axes.barh([i + 0.4 * offset for i in range(len(values))], values, height=0.38, color=colour, label=group)
    axes.set_yticks([i + 0.2 for i in range(len(results["arms"]))], [arm["arm"] for arm in results["arms"]], fontsize=7)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(title="Weight drift from the AR model", xlabel="norm of the change / norm before")
    axes.margins(x=0.4)  # room for the legend
    axes.legend(fontsize=7)
