"""docs/picture.png, the picture of the README, from committed results: accuracy over tokens per forward.

    python -m tests.benchmarks.plot_readme docs
"""

import json
import sys
from pathlib import Path
from typing import Any

from edlm_jax.reports.picture import AR_COLOUR, picture

MODES = {"diffusion": "o", "self_speculation": "^", "quadratic_speculation": "D", "psd": "v"}


def plot_readme(quickstart: dict[str, Any], modes: dict[str, Any], path: Path) -> None:
    """Draw the quickstart's report beside the modes' study, of one jointly trained model."""
    with picture(path, 8, 3.4) as figure:
        axes = figure.subplots()
        axes.axhline(quickstart["ar"]["accuracy"], color=AR_COLOUR, linestyle="--", linewidth=1)
        axes.plot([1], [quickstart["ar"]["accuracy"]], "s", color=AR_COLOUR, label="AR, one token a forward")
        points = [(entry["tokens_per_forward"], entry["accuracy"]) for entry in quickstart["diffusion"]]
        axes.plot(*zip(*points, strict=True), "o-", label="quickstart: diffusion")
        for mode, marker in MODES.items():
            found = [point for point in modes["arms"][0]["points"] if point["mode"] == mode]
            points = [(point["tokens_per_forward"]["mean"], point["accuracy"]["mean"]) for point in found]
            name = f"joint training: {mode.replace('_', ' ')}"
            axes.plot(*zip(*points, strict=True), marker=marker, linewidth=1, alpha=0.85, label=name)
        axes.set(xlabel="tokens per denoising forward", ylabel="exact match", ylim=(0.78, 1.02))
        axes.legend(fontsize=8, loc="lower left")


if __name__ == "__main__":
    docs = Path(sys.argv[1])
    read = lambda name: json.loads((docs / name).read_text(encoding="utf-8"))  # noqa: E731
    plot_readme(read("quickstart.json"), read("studies/modes.json"), docs / "picture.png")
