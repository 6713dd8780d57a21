"""What speed costs: accuracy against tokens per forward and tokens/s, over thresholds and block lengths."""

from collections.abc import Sequence
from typing import Any

from edlm_jax.decoding import Decoder
from edlm_jax.evaluation.compare import AR, compare_accuracy, compare_speed, diffusion_at
from edlm_jax.evaluation.tasks import Decoding, Task
from edlm_jax.pretrained import Text
from edlm_jax.reports.progress import Progress


def sweep_points(thresholds: Sequence[float], block_lengths: Sequence[int]) -> list[Decoding]:
    """Block diffusion at each threshold in blocks of each length."""
    return [{**how, "block_length": length} for length in block_lengths for how in diffusion_at(thresholds)]


def sweep(
    decoder: Decoder,
    points: Sequence[Decoding],
    tasks: Sequence[Task],
    text: Text,
    *,
    baseline: Decoder | None = None,
    batch_size: int,
    timed_prompts: int,
) -> dict[str, Any]:
    """{"sweep": [one dict a point: block_length, threshold, accuracy, tokens_per_forward, tokens_per_second, ...]}.

    With a baseline, "ar" has the AR model's measurements. Speeds are those of batch 1, all points taking turns on each
    prompt, so that they are comparable on a machine that slows down.
    """
    ways = [(decoder, how) for how in points]
    if baseline is not None:
        ways = [(baseline, AR), *ways]
    timed_prompts, results = min(timed_prompts, len(tasks)), []
    with Progress(len(ways) + timed_prompts, "sweep") as progress:
        for way in ways:
            results += compare_accuracy([way], tasks, text, batch_size)
            progress.done(len(results), f"{_name(way[1])}: {results[-1]['accuracy']:.3f} exact")
        on_prompt = lambda count: progress.done(len(ways) + count, "timing")  # noqa: E731
        speeds = compare_speed(ways, tasks, text, timed_prompts, on_prompt)
    measured = [accuracy | speed for accuracy, speed in zip(results, speeds, strict=True)]
    ar = {} if baseline is None else {"ar": measured.pop(0)}
    named = [
        {"block_length": how["block_length"], "threshold": how["threshold"], **entry}
        for how, entry in zip(points, measured, strict=True)
    ]
    return {**ar, "sweep": named}


def _name(how: Decoding) -> str:
    return "AR" if how["mode"] == "ar" else f"block {how['block_length']}, threshold {how['threshold']:g}"
