"""report.png of `edlm lossless`: tokens per second and per forward of each way of decoding."""

from pathlib import Path

from edlm_jax.reports.picture import AR_COLOUR, picture
from edlm_jax.reports.report import Report


def plot_lossless(report: Report, path: Path) -> None:
    """Draw the report."""
    ways = report["lossless"]
    baseline = ways["AR"]["tokens_per_second"]
    with picture(path, 9, 3.6) as figure:
        figure.suptitle(f"{report['name']}: the same text, faster", fontsize=14, x=0.01, ha="left")
        panels = {"tokens_per_second": "tokens/s at batch 1", "tokens_per_forward": "tokens per forward"}
        for axes, (key, title) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
            values = [entry[key] for entry in ways.values()]
            bars = axes.barh(list(ways), values, color=[AR_COLOUR if name == "AR" else "#81b29a" for name in ways])
            speed = key == "tokens_per_second"
            axes.bar_label(bars, [f"{v:.1f}, {v / baseline:.2f}x" if speed else f"{v:.2f}" for v in values], padding=3)
            axes.set(title=title, xlim=(0, 1.45 * max(values)))
            axes.grid(axis="y", visible=False)
            axes.invert_yaxis()
