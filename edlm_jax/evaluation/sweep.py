"""What speed costs: accuracy against tokens per forward and tokens/s, over thresholds and block lengths."""

from collections.abc import Sequence
from typing import Any

from edlm_jax.decoding import Mode
from edlm_jax.evaluation.compare import AR, compare_accuracy, compare_speed, results_by_mode
from edlm_jax.evaluation.tasks import decoded_questions
from edlm_jax.evaluation.tasks.task import Task, Way
from edlm_jax.pretrained import Text
from edlm_jax.reports.progress import Progress


def sweep(
    ways: Sequence[Way], tasks: Sequence[Task], text: Text, *, batch_size: int, timed_prompts: int
) -> dict[str, Any]:
    """{"sweep": [one dict a point: block_length, threshold, accuracy, tokens_per_forward, tokens_per_second, ...]}.

    Where AR is one of the ways, the first, "ar" has its measurements. Speeds are those of batch 1, all points taking
    turns on each prompt, so that they are comparable on a machine that slows down.
    """
    timed_prompts, results = min(timed_prompts, len(decoded_questions(tasks))), []
    with Progress(len(ways) + timed_prompts, "sweep") as progress:
        for way in ways:
            results += compare_accuracy([way], tasks, text, batch_size)
            progress.done(len(results), f"{_point_name(way.mode)}: {results[-1]['accuracy']:.3f} exact")

        def on_prompt(count: int) -> None:
            progress.done(len(ways) + count, "timing")

        speeds = compare_speed(ways, tasks, text, timed_prompts, on_prompt)
    found = results_by_mode([way.mode for way in ways], results, speeds)
    lengths, points = [way.mode.block_length for way in ways if way.mode != AR], found.pop("diffusion")
    found["sweep"] = [{"block_length": length, **point} for length, point in zip(lengths, points, strict=True)]
    return found


def _point_name(mode: Mode) -> str:
    return "AR" if mode == AR else f"block {mode.block_length}, threshold {mode.threshold:g}"
