"""A conversion's curve over training tokens: bound, accuracy, agreement, tokens per forward; what a fit makes of it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edlm_jax.reports.picture import AR_COLOUR, picture
from edlm_jax.reports.report import Report

PUBLISHED = {  # tokens of conversions that were published, of models of 0.6B to 8B
    "OPDLM (2606.06712)": 0.066e9,
    "Fast-dLLM v2 (2509.26328)": 1.31e9,
    "FLARE (2606.01774)": 10e9,
    "Efficient-DLM 4B, ablations (2512.14067)": 25e9,
    "Efficient-DLM 8B (2512.14067)": 500e9,
}
_COLOURS = {"AR": AR_COLOUR, "0.9": "#e07a5f", "0.8": "#81b29a"}
_PANELS = {"accuracy": "accuracy", "agreement": "tokens that are AR's", "tokens_per_forward": "tokens per forward"}


def plot_conversion(report: Report, path: Path) -> None:
    """Draw the report of tests/benchmarks/conversion.py; the untrained model stands at the left edge."""
    tokens = [max(point["row_tokens"], 1e3) for point in report["points"]]
    with picture(path, 11, 6.4) as figure:
        (top, beside), below = figure.subplots(2, 2)
        _bound(top, report, tokens)
        for axes, (key, title) in zip([beside, *below], _PANELS.items(), strict=True):
            for name, colour in _COLOURS.items():
                values = [point["ways"][name][key] for point in report["points"]]
                label = "its AR mode" if name == "AR" else f"threshold {name}"
                axes.plot(tokens, values, "o-", color=colour, label=label)
            axes.axhline(report["ar"].get(key, 1), color=AR_COLOUR, linestyle="--", linewidth=1)
            axes.set(title=title, xscale="log", xlabel="row tokens of training")
        beside.legend()


def _bound(axes, report: Report, tokens: list[float]) -> None:
    """With the line of the fit, and where others have stopped."""
    lines = {"bound": dict(color="#e07a5f", label="diffusion bound"), "ar_loss": dict(color=AR_COLOUR, label="AR loss")}
    for key, style in lines.items():
        if key in report["points"][0]:
            axes.plot(tokens, [point[key] for point in report["points"]], "o-", **style)
    axes.axhline(report["ar"]["loss"], color=AR_COLOUR, linestyle="--", linewidth=1)
    if found := report.get("fits", {}).get("bound"):
        _line(axes, found, tokens[-1])
    for number, (name, count) in enumerate(PUBLISHED.items()):
        axes.axvline(count, color="#bbbbbb", linewidth=0.8)
        axes.annotate(name, (count, 0.98 - 0.09 * number), xycoords=("data", "axes fraction"), fontsize=6, ha="right")
    axes.set(title="held-out nats per token", xscale="log", xlabel="row tokens of training", ylim=(0, None))
    axes.legend(loc="center right", fontsize=8)


def _line(axes, found: Mapping[str, Any], last: float) -> None:
    end = min(found["enough"] or 1e12, 1e12)
    x = np.geomspace(last, max(end, 2 * last))
    axes.plot(x, found["a"] + found["b"] * np.log(x), ":", color="#e07a5f")
    if found["enough"]:
        label = f"fit: {found['enough']:.2g} ({found['enough_from']:.2g} to {found['enough_to']:.2g})"
        height = max(found["a"] + found["b"] * math.log(end), 0)
        axes.annotate(label, (end, height), (4, 6), textcoords="offset points", fontsize=7)
