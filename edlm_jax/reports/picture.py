"""The pictures of what commands find, and what these and those of studies share: style, and how one is written."""

import contextlib
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from edlm_jax.reports.report import Report

AR_COLOUR, _OURS, _GREEN = "#3d405b", "#2a9d8f", "#81b29a"
_COLOURS = {"diffusion": _OURS, "mars": _OURS, "ar": AR_COLOUR}
DRIFT_COLOURS = {"attention": "#e07a5f", "ffn": _GREEN}
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
def picture(path: Path, width: float, height: float, title: str = "") -> Iterator[Figure]:
    """A figure of so many inches to draw on, which is written to the path at the end."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        if title:
            figure.suptitle(title, fontsize=14, x=0.01, ha="left")
        yield figure
        figure.savefig(path, dpi=130)


def _shades(count: int, first: float, last: float) -> np.ndarray:
    """From dark to light: of thresholds the lower, the bolder, the lighter."""
    return matplotlib.colormaps["viridis"](np.linspace(first, last, count))


def plot_report(report: Report, losses: Sequence[tuple[int, float]], path: Path) -> None:
    """report.png of `edlm convert`; `losses` is the training curve as (step, loss)."""
    with picture(path, 13.5, 7.8, f"{report['name']}: AR model and its conversion") as figure:
        panels = figure.subplot_mosaic([["trade", "speed", "loss"], ["kinds", "kinds", "drift"]])
        shades = _shades(len(report["diffusion"]), 0.25, 0.85)
        _trade(panels["trade"], report, shades)
        _speed(panels["speed"], report, shades)
        _kinds(panels["kinds"], report, shades)
        _losses(panels["loss"], losses)
        _drift(panels["drift"], report)


def _trade(axes, report: Report, shades: np.ndarray) -> None:
    accuracy = report["ar"]["accuracy"]
    axes.axhline(accuracy, color=AR_COLOUR, linestyle="--", linewidth=1)
    axes.plot([1], [accuracy], "D", color=AR_COLOUR, label=f"AR ({accuracy:.3f})")
    forwards = [entry["tokens_per_forward"] for entry in report["diffusion"]]
    accuracies = [entry["accuracy"] for entry in report["diffusion"]]
    axes.plot(forwards, accuracies, color="#bbbbbb", linewidth=1.5, zorder=1)
    for entry, shade, x, y in zip(report["diffusion"], shades, forwards, accuracies, strict=True):
        axes.plot([x], [y], "o", color=shade, markersize=8)
        axes.annotate(f"{entry['threshold']:g}", (x, y), (5, -12), textcoords="offset points", fontsize=8)
    low, high = min([accuracy, *accuracies]), max([accuracy, *accuracies])
    axes.set_ylim(max(0.0, low - 0.1), min(1.02, high + 0.05))
    axes.set(title="Accuracy against tokens per forward", xlabel="tokens per denoising forward", ylabel="exact match")
    axes.legend(loc="lower left", title="numbers: confidence threshold", title_fontsize=8)


def _speed(axes, report: Report, shades: np.ndarray) -> None:
    baseline = report["ar"]["tokens_per_second"]
    speeds = [baseline, *(entry["tokens_per_second"] for entry in report["diffusion"])]
    names = ["AR", *(f"{entry['threshold']:g}" for entry in report["diffusion"])]
    bars = axes.bar(names, speeds, color=[AR_COLOUR, *shades], width=0.65)
    axes.bar_label(bars, [f"{speed:.0f}\n{speed / baseline:.1f}x" for speed in speeds], padding=2, fontsize=8)
    axes.grid(axis="x", visible=False)
    axes.set_ylim(0, 1.2 * max(speeds))
    axes.set(title="Speed at batch 1", xlabel="AR, and its conversion by threshold", ylabel="generated tokens/s")


def _kinds(axes, report: Report, shades: np.ndarray) -> None:
    shown = [("AR", report["ar"]), *((f"{entry['threshold']:g}", entry) for entry in report["diffusion"])]
    kinds = list(report["ar"]["kinds"])
    width = 0.82 / len(shown)
    for i, (name, entry) in enumerate(shown):
        places = [k + (i - (len(shown) - 1) / 2) * width for k in range(len(kinds))]
        values, colour = [entry["kinds"][kind] for kind in kinds], shades[i - 1] if i else AR_COLOUR
        axes.bar(places, values, width=0.9 * width, color=colour, label=name)
    axes.set_xticks(range(len(kinds)), kinds)
    axes.grid(axis="x", visible=False)
    axes.set(title="Accuracy by kind of task", ylabel="exact match", ylim=(0, 1.15))
    axes.legend(loc="upper right", ncols=len(shown), fontsize=8)


def _losses(axes, losses: Sequence[tuple[int, float]]) -> None:
    steps, values = [step for step, _ in losses], [loss for _, loss in losses]
    fading = functools.partial(itertools.accumulate, func=lambda total, value: 0.9 * total + value)
    weights = fading([1.0] * len(values))  # so that the mean has no bias at its start
    smooth = [total / weight for total, weight in zip(fading(values), weights, strict=True)]
    axes.plot(steps, values, color="#b8c4bb", linewidth=0.9)
    axes.plot(steps, smooth, color=_OURS, linewidth=1.8)
    axes.set(title="Training loss of the conversion", xlabel="step", ylabel="loss as optimised (nats)")


def _drift(axes, report: Report) -> None:
    for group, found in report["weight_drift"].items():
        axes.plot(found["relative"], "o-", color=DRIFT_COLOURS[group], label=group)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title="Weight drift from the AR model", xlabel="layer", ylabel="|change| / |before|", ylim=(0, None))
    axes.legend()


def plot_sweep(report: Report, path: Path) -> None:
    """sweep.png: a curve for each block length; numbers beside the points are confidence thresholds."""
    panels = {
        "tokens_per_forward": ("Accuracy against tokens per forward", "tokens per denoising forward"),
        "tokens_per_second": ("Accuracy against speed at batch 1", "generated tokens/s"),
    }
    lengths = list(dict.fromkeys(entry["block_length"] for entry in report["sweep"]))
    with picture(path, 11, 4.6) as figure:
        for axes, (field, (title, label)) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
            for length, shade in zip(lengths, _shades(len(lengths), 0.1, 0.9), strict=True):
                _curve(axes, [entry for entry in report["sweep"] if entry["block_length"] == length], field, shade)
            if "ar" in report:
                accuracy = report["ar"]["accuracy"]
                axes.axhline(accuracy, color=AR_COLOUR, linestyle="--", linewidth=1)
                axes.plot([report["ar"][field]], [accuracy], "D", color=AR_COLOUR, label="AR")
            axes.set(title=title, xlabel=label)
        figure.axes[0].set_ylabel("exact match")
        figure.axes[1].legend(title="block length", title_fontsize=8)


def _curve(axes, entries: list[dict], field: str, shade: np.ndarray) -> None:
    x, y = [entry[field] for entry in entries], [entry["accuracy"] for entry in entries]
    axes.plot(x, y, "o-", color=shade, label=f"{entries[0]['block_length']}")
    for entry, place in zip(entries, zip(x, y, strict=True), strict=True):
        axes.annotate(f"{entry['threshold']:g}", place, (4, 4), textcoords="offset points", fontsize=7, color=shade)


def plot_diagnosis(found: Report, path: Path) -> None:
    """diagnosis.png: a panel for each thing that was measured."""
    panels = [("predictions", _loss), ("predictions", _calibration), ("decode_order", _order)]
    panels += [("weight_drift", _drift), ("gradient_variance", _variance)]
    shown = [draw for name, draw in panels if name in found]
    with picture(path, 4.3 * len(shown), 3.8) as figure:
        for axes, draw in zip(figure.subplots(1, len(shown)), shown, strict=True):
            draw(axes, found)


def _loss(axes, found: Report) -> None:
    for mode, prediction in found["predictions"].items():
        axes.plot(prediction["loss_by_position"], "o-", markersize=3, color=_COLOURS[mode], label=mode)
    axes.set(title="Loss by position", xlabel="position in the block", ylabel="nats per token", ylim=(0, None))
    axes.legend()


def _calibration(axes, found: Report) -> None:
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
    for mode, prediction in found["predictions"].items():
        x, y = ([entry[name] for entry in prediction["bins"]] for name in ("confidence", "accuracy"))
        axes.plot(x, y, "o-", markersize=4, color=_COLOURS[mode], label=f"{mode}, ECE {prediction['ece']:.3f}")
    axes.set(title="Calibration", xlabel="confidence", ylabel="share of right tokens", xlim=(0, 1), ylim=(0, 1))
    axes.legend()


def _order(axes, found: Report) -> None:
    order = found["decode_order"]
    axes.plot(order["forward_by_position"], "o-", markersize=3, color=_OURS)
    title = f"Order of decoding, tau {order['kendall_tau']:.2f}"
    axes.set(title=title, xlabel="position in the block", ylabel="forwards after the block's first", ylim=(0, None))


def _variance(axes, found: Report) -> None:
    ways = {name: way["relative"] or 0.0 for name, way in found["gradient_variance"].items()}
    axes.barh(list(ways), list(ways.values()), color=_OURS, height=0.6)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(title="Variance of the gradient", xlabel="over the squared gradient")


def plot_lossless(report: Report, path: Path) -> None:
    """report.png of `edlm lossless`: tokens per second and per forward of each way of decoding."""
    ways = report["lossless"]
    baseline = ways["AR"]["tokens_per_second"]
    colours = [AR_COLOUR if name == "AR" else _GREEN for name in ways]
    with picture(path, 9, 3.6, f"{report['name']}: the same text, faster") as figure:
        panels = {"tokens_per_second": "tokens/s at batch 1", "tokens_per_forward": "tokens per forward"}
        for axes, (key, title) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
            values = [entry[key] for entry in ways.values()]
            bars = axes.barh(list(ways), values, color=colours)
            speed = key == "tokens_per_second"
            axes.bar_label(bars, [f"{v:.1f}, {v / baseline:.2f}x" if speed else f"{v:.2f}" for v in values], padding=3)
            axes.set(title=title, xlim=(0, 1.45 * max(values)))
            axes.grid(axis="y", visible=False)
            axes.invert_yaxis()


def plot_serving(found: Mapping[int, Mapping[str, Mapping[str, float]]], path: Path) -> None:
    """serve.png, of clients -> way -> numbers, as `benchmarks.serving.measure_serving` finds them."""
    clients, names = list(found), list(next(iter(found.values())))
    panels = {
        "tokens_per_second": ("tokens/s of all clients", 1.0),
        "first_token_p95": ("ms to the first token, 19 of 20", 1e3),
        "token_p95": ("ms a further token, 19 of 20", 1e3),
    }
    with picture(path, 11, 3.8, "An engine under load") as figure:
        for axes, (key, (title, scale)) in zip(figure.subplots(1, 3), panels.items(), strict=True):
            for name in names:
                how = dict(color=AR_COLOUR) if name == "ar" else dict(linewidth=3) if name == "by load" else {}
                axes.plot(clients, [scale * found[n][name][key] for n in clients], marker="o", label=name, **how)
            axes.set(title=title, xlabel="clients", xscale="log", xticks=clients, xticklabels=clients, ylim=(0, None))
            axes.minorticks_off()
        axes.legend(fontsize=8)
