"""sweep.png: accuracy against tokens per forward and against tokens/s, a curve for each block length."""

from pathlib import Path

import matplotlib

from edlm_jax.reports.picture import AR_COLOUR, picture
from edlm_jax.reports.report import Report

PANELS = {
    "tokens_per_forward": ("Accuracy against tokens per forward", "tokens per denoising forward"),
    "tokens_per_second": ("Accuracy against speed at batch 1", "generated tokens/s"),
}


def plot_sweep(report: Report, path: Path) -> None:
    """Draw the sweep; numbers beside the points are confidence thresholds."""
    lengths = list(dict.fromkeys(entry["block_length"] for entry in report["sweep"]))
    scale = matplotlib.colormaps["viridis"]
    with picture(path, 11, 4.6) as figure:
        for axes, (field, (title, label)) in zip(figure.subplots(1, 2, sharey=True), PANELS.items(), strict=True):
            for index, length in enumerate(lengths):
                colour = scale(0.1 + 0.8 * index / max(len(lengths) - 1, 1))
                _curve(axes, [entry for entry in report["sweep"] if entry["block_length"] == length], field, colour)
            if "ar" in report:
                accuracy = report["ar"]["accuracy"]
                axes.axhline(accuracy, color=AR_COLOUR, linestyle="--", linewidth=1)
                axes.plot([report["ar"][field]], [accuracy], "D", color=AR_COLOUR, label="AR")
            axes.set(title=title, xlabel=label)
        figure.axes[0].set_ylabel("exact match")
        figure.axes[1].legend(title="block length", title_fontsize=8)


def _curve(axes, entries: list[dict], field: str, colour) -> None:
    x, y = [entry[field] for entry in entries], [entry["accuracy"] for entry in entries]
    axes.plot(x, y, "o-", color=colour, label=f"{entries[0]['block_length']}")
    for entry, place in zip(entries, zip(x, y, strict=True), strict=True):
        axes.annotate(f"{entry['threshold']:g}", place, (4, 4), textcoords="offset points", fontsize=7, color=colour)
