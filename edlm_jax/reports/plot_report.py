"""report.png: accuracy against tokens per forward, speed, accuracy by kind, training loss, weight drift."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

from edlm_jax.reports.picture import AR_COLOUR, draw_drift, picture
from edlm_jax.reports.report import Report


def plot_report(report: Report, losses: Sequence[tuple[int, float]], path: Path) -> None:
    """Draw the report; `losses` is the training curve as (step, loss)."""
    with picture(path, 13.5, 7.8) as figure:
        figure.suptitle(f"{report['name']}: AR model and its conversion", fontsize=14, x=0.01, ha="left")
        panels = figure.subplot_mosaic([["trade", "speed", "loss"], ["kinds", "kinds", "drift"]])
        colours = _threshold_colours(len(report["diffusion"]))
        _trade(panels["trade"], report, colours)
        _speed(panels["speed"], report, colours)
        _kinds(panels["kinds"], report, colours)
        _loss(panels["loss"], losses)
        draw_drift(panels["drift"], report["weight_drift"])


def _threshold_colours(count: int) -> list:
    """From cautious (dark) to bold (light): the lower the threshold, the lighter."""
    scale = matplotlib.colormaps["viridis"]
    return [scale(0.25 + 0.6 * i / max(count - 1, 1)) for i in range(count)]


def _trade(axes, report: Report, colours: list) -> None:
    accuracy = report["ar"]["accuracy"]
    axes.axhline(accuracy, color=AR_COLOUR, linestyle="--", linewidth=1)
    axes.plot([1], [accuracy], "D", color=AR_COLOUR, label=f"AR ({accuracy:.3f})")
    forwards = [entry["tokens_per_forward"] for entry in report["diffusion"]]
    accuracies = [entry["accuracy"] for entry in report["diffusion"]]
    axes.plot(forwards, accuracies, color="#bbbbbb", linewidth=1.5, zorder=1)
    for entry, colour, x, y in zip(report["diffusion"], colours, forwards, accuracies, strict=True):
        axes.plot([x], [y], "o", color=colour, markersize=8)
        axes.annotate(f"{entry['threshold']:g}", (x, y), (5, -12), textcoords="offset points", fontsize=8)
    low, high = min([accuracy, *accuracies]), max([accuracy, *accuracies])
    axes.set_ylim(max(0.0, low - 0.1), min(1.02, high + 0.05))
    axes.set(title="Accuracy against tokens per forward", xlabel="tokens per denoising forward", ylabel="exact match")
    axes.legend(loc="lower left", title="numbers: confidence threshold", title_fontsize=8)


def _speed(axes, report: Report, colours: list) -> None:
    baseline = report["ar"]["tokens_per_second"]
    speeds = [baseline, *(entry["tokens_per_second"] for entry in report["diffusion"])]
    names = ["AR", *(f"{entry['threshold']:g}" for entry in report["diffusion"])]
    bars = axes.bar(names, speeds, color=[AR_COLOUR, *colours], width=0.65)
    axes.bar_label(bars, [f"{speed:.0f}\n{speed / baseline:.1f}x" for speed in speeds], padding=2, fontsize=8)
    axes.set_ylim(0, 1.2 * max(speeds))
    axes.grid(axis="x", visible=False)
    axes.set(title="Speed at batch 1", xlabel="AR, and its conversion by threshold", ylabel="generated tokens/s")


def _kinds(axes, report: Report, colours: list) -> None:
    shown = [("AR", report["ar"]["kinds"], AR_COLOUR)]
    for entry, colour in zip(report["diffusion"], colours, strict=True):
        shown.append((f"{entry['threshold']:g}", entry["kinds"], colour))
    kinds = list(report["ar"]["kinds"])
    width = 0.82 / len(shown)
    for i, (name, accuracies, colour) in enumerate(shown):
        places = [k + (i - (len(shown) - 1) / 2) * width for k in range(len(kinds))]
        axes.bar(places, [accuracies[kind] for kind in kinds], width=0.9 * width, color=colour, label=name)
    axes.set_xticks(range(len(kinds)), kinds)
    axes.grid(axis="x", visible=False)
    axes.set_ylim(0, 1.15)
    axes.set(title="Accuracy by kind of task", ylabel="exact match")
    axes.legend(loc="upper right", ncols=len(shown), fontsize=8)


def _loss(axes, losses: Sequence[tuple[int, float]]) -> None:
    steps, values = [step for step, _ in losses], [loss for _, loss in losses]
    axes.plot(steps, values, color="#b8c4bb", linewidth=0.9)
    axes.plot(steps, _smooth(values), color="#2a9d8f", linewidth=1.8)
    axes.set(title="Training loss of the conversion", xlabel="step", ylabel="loss as optimised (nats)")


def _smooth(values: Sequence[float], decay: float = 0.9) -> list[float]:
    """Exponential mean without the bias of its start."""
    smooth, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = decay * total + value, decay * weight + 1.0
        smooth.append(total / weight)
    return smooth
