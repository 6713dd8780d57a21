"""serve.png of `edlm bench serve`: tokens per second, and the wait for tokens, by the number of clients."""

from collections.abc import Mapping
from pathlib import Path

from edlm_jax.reports.picture import AR_COLOUR, picture


def plot_serving(found: Mapping[int, Mapping[str, Mapping[str, float]]], path: Path) -> None:
    """Draw clients -> way -> numbers, as `benchmarks.serving.measure_serving` finds them."""
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
