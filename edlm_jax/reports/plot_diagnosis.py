"""diagnosis.png: loss by position, calibration, order of decoding, drift by layer, variance of the gradient."""

from pathlib import Path

from edlm_jax.reports.picture import AR_COLOUR, draw_drift, picture
from edlm_jax.reports.report import Report

_COLOURS = {"diffusion": "#2a9d8f", "mars": "#2a9d8f", "ar": AR_COLOUR}


def plot_diagnosis(found: Report, path: Path) -> None:
    """Draw what was measured."""
    panels = {"loss": _loss, "calibration": _calibration, "decode_order": _order}
    panels |= {"weight_drift": lambda axes, found: draw_drift(axes, found["weight_drift"])}
    panels |= {"gradient_variance": _variance}
    shown = {name: draw for name, draw in panels.items() if name in found or name in ("loss", "calibration")}
    with picture(path, 4.3 * len(shown), 3.8) as figure:
        for axes, draw in zip(figure.subplots(1, len(shown)), shown.values(), strict=True):
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
    axes.plot(order["forward_by_position"], "o-", markersize=3, color=_COLOURS["diffusion"])
    title = f"Order of decoding, tau {order['kendall_tau']:.2f}"
    axes.set(title=title, xlabel="position in the block", ylabel="forwards after the block's first", ylim=(0, None))


def _variance(axes, found: Report) -> None:
    ways = {name: way["relative"] or 0.0 for name, way in found["gradient_variance"].items()}
    axes.barh(list(ways), list(ways.values()), color=_COLOURS["diffusion"], height=0.6)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(title="Variance of the gradient", xlabel="over the squared gradient")
