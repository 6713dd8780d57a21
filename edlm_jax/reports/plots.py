"""The pictures of commands: report.png, sweep.png, diagnosis.png, serve.png."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

from edlm_jax.reports.picture import AR_COLOUR, draw_drift, picture
from edlm_jax.reports.report import Report

_MODE_COLOURS = {"diffusion": "#2a9d8f", "ar": AR_COLOUR}


def _shades(count: int) -> list:
    """From dark, which is cautious, to light, which is bold."""
    scale = matplotlib.colormaps["viridis"]
    return [scale(0.25 + 0.6 * i / max(count - 1, 1)) for i in range(count)]


def plot_report(report: Report, losses: Sequence[tuple[int, float]], path: Path) -> None:
    """AR beside its conversion: accuracy, speed, kinds of task, weight drift; `losses` are (step, loss)."""
    with picture(path, 13.5, 7.8) as figure:
        figure.suptitle(f"{report['name']}: AR model and its conversion", fontsize=14, x=0.01, ha="left")
        panels = figure.subplot_mosaic([["trade", "speed", "loss"], ["kinds", "kinds", "drift"]])
        colours = _shades(len(report["diffusion"]))
        _trade(panels["trade"], report, colours)
        _speed(panels["speed"], report, colours)
        _kinds(panels["kinds"], report, colours)
        _training_loss(panels["loss"], losses)
        draw_drift(panels["drift"], report["weight_drift"])


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
    low = min([accuracy, *accuracies])
    axes.set_ylim(max(0.0, low - 0.1), min(1.02, accuracy + 0.05))
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
    axes.set(title="Speed at batch 1", xlabel="AR, and diffusion by threshold", ylabel="generated tokens/s")


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


def _training_loss(axes, losses: Sequence[tuple[int, float]]) -> None:
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


def plot_lossless(report: Report, path: Path) -> None:
    """Tokens per second and per forward of each way of decoding that gives the same text."""
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


def plot_sweep(report: Report, path: Path) -> None:
    """Accuracy against tokens per forward and tokens/s, a curve a block length; numbers are confidence thresholds."""
    lengths = list(dict.fromkeys(entry["block_length"] for entry in report["sweep"]))
    panels = {
        "tokens_per_forward": ("Accuracy against tokens per forward", "tokens per denoising forward"),
        "tokens_per_second": ("Accuracy against speed at batch 1", "generated tokens/s"),
    }
    with picture(path, 11, 4.6) as figure:
        for axes, (field, (title, label)) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
            for length, colour in zip(lengths, _shades(len(lengths)), strict=True):
                entries = [entry for entry in report["sweep"] if entry["block_length"] == length]
                points = [(entry[field], entry["accuracy"]) for entry in entries]
                axes.plot(*zip(*points, strict=True), "o-", color=colour, label=f"{length}")
                how = dict(textcoords="offset points", fontsize=7, color=colour)
                for entry, point in zip(entries, points, strict=True):
                    axes.annotate(f"{entry['threshold']:g}", point, (4, 4), **how)
            if "ar" in report:
                accuracy = report["ar"]["accuracy"]
                axes.axhline(accuracy, color=AR_COLOUR, linestyle="--", linewidth=1)
                axes.plot([report["ar"][field]], [accuracy], "D", color=AR_COLOUR, label="AR")
            axes.set(title=title, xlabel=label)
        figure.axes[0].set_ylabel("exact match")
        figure.axes[1].legend(title="block length", title_fontsize=8)


def plot_diagnosis(found: Report, path: Path) -> None:
    """Loss by position, calibration, order of decoding, drift by layer, variance of the gradient."""
    panels = {"loss": _loss, "calibration": _calibration, "decode_order": _order}
    panels |= {"weight_drift": lambda axes, found: draw_drift(axes, found["weight_drift"])}
    panels |= {"gradient_variance": _variance}
    shown = {name: draw for name, draw in panels.items() if name in found or name in ("loss", "calibration")}
    with picture(path, 4.3 * len(shown), 3.8) as figure:
        for axes, draw in zip(figure.subplots(1, len(shown)), shown.values(), strict=True):
            draw(axes, found)


def _loss(axes, found: Report) -> None:
    for mode, prediction in found["predictions"].items():
        axes.plot(prediction["loss_by_position"], "o-", markersize=3, color=_MODE_COLOURS[mode], label=mode)
    axes.set(title="Loss by position", xlabel="position in the block", ylabel="nats per token", ylim=(0, None))
    axes.legend()


def _calibration(axes, found: Report) -> None:
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
    for mode, prediction in found["predictions"].items():
        x, y = ([entry[name] for entry in prediction["bins"]] for name in ("confidence", "accuracy"))
        axes.plot(x, y, "o-", markersize=4, color=_MODE_COLOURS[mode], label=f"{mode}, ECE {prediction['ece']:.3f}")
    axes.set(title="Calibration", xlabel="confidence", ylabel="share of right tokens", xlim=(0, 1), ylim=(0, 1))
    axes.legend()


def _order(axes, found: Report) -> None:
    order = found["decode_order"]
    axes.plot(order["forward_by_position"], "o-", markersize=3, color=_MODE_COLOURS["diffusion"])
    title = f"Order of decoding, tau {order['kendall_tau']:.2f}"
    axes.set(title=title, xlabel="position in the block", ylabel="forwards after the block's first", ylim=(0, None))


def _variance(axes, found: Report) -> None:
    ways = {name: way["relative"] or 0.0 for name, way in found["gradient_variance"].items()}
    axes.barh(list(ways), list(ways.values()), color=_MODE_COLOURS["diffusion"], height=0.6)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(title="Variance of the gradient", xlabel="over the squared gradient")


def plot_serving(found: Mapping[int, Mapping[str, Mapping[str, float]]], path: Path) -> None:
    """Tokens per second, and the wait for tokens, of clients -> way -> numbers, as `edlm bench serve` finds."""
    clients, names = list(found), list(next(iter(found.values())))
    panels = {
        "tokens_per_second": ("tokens/s of all clients", 1.0),
        "first_token_p95": ("ms to the first token, 19 of 20", 1e3),
        "token_p95": ("ms a further token, 19 of 20", 1e3),
    }
    with picture(path, 11, 3.8) as figure:
        figure.suptitle("An engine under load", fontsize=14, x=0.01, ha="left")
        for axes, (key, (title, scale)) in zip(figure.subplots(1, 3), panels.items(), strict=True):
            for name in names:
                how = dict(color=AR_COLOUR) if name == "ar" else dict(linewidth=3) if name == "by load" else {}
                axes.plot(clients, [scale * found[n][name][key] for n in clients], marker="o", label=name, **how)
            axes.set(title=title, xlabel="clients", xscale="log", xticks=clients, xticklabels=clients, ylim=(0, None))
            axes.minorticks_off()
        axes.legend(fontsize=8)
