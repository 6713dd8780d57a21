"""The AR model and its conversion on the same tasks: accuracy, tokens per forward and speed in one engine."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from edlm_jax.data.sources import open_source
from edlm_jax.decoding import Decoder, Mode
from edlm_jax.decoding.modes import Autoregressive, Diffusion
from edlm_jax.errors import InputError
from edlm_jax.evaluation.tasks import Task, longest_answer, measure_speed, score_tasks
from edlm_jax.pretrained import Text

AR = Autoregressive()


def check_evaluation(c: ConfigDict) -> None:
    """Raises InputError for evaluation settings that could only fail hours later, when training is over."""
    e = c.evaluation
    for threshold in e.thresholds:
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
            raise InputError(f"config.evaluation.thresholds must lie in [0, 1], not {threshold!r}")
    if not e.thresholds:
        raise InputError("config.evaluation.thresholds is empty; give at least one, for example (1.0, 0.9)")
    for name in ("batch_size", "timed_prompts"):
        if e[name] < 1:
            raise InputError(f"config.evaluation.{name} must be positive, not {e[name]}")
    if not e.tasks:
        raise InputError("config.evaluation.tasks is empty; give sources of prompts with exact answers")
    for source in [*e.tasks, *c.data.eval_sources]:
        open_source(source)


def diffusion_at(thresholds: Sequence[float]) -> list[Diffusion]:
    """Block diffusion at each threshold."""
    return [Diffusion(threshold=threshold) for threshold in thresholds]


def compare_accuracy(ways: Sequence[tuple[Decoder, Mode]], tasks: Sequence[Task], text: Text, batch_size: int):
    """One dict per way: accuracy, kinds, tokens per forward, forwards."""
    scores = [score_tasks(decoder, tasks, text, batch_size=batch_size, mode=mode) for decoder, mode in ways]
    return [
        {
            "accuracy": score.accuracy,
            "tokens_per_forward": score.tokens_per_forward,
            "denoise_forwards": score.denoise_forwards,
            "commit_forwards": score.commit_forwards,
            "new_tokens": score.new_tokens,
            "kinds": score.kinds,
        }
        for score in scores
    ]


def compare_speed(
    ways: Sequence[tuple[Decoder, Mode]],
    tasks: Sequence[Task],
    text: Text,
    timed_prompts: int,
    on_prompt: Callable[[int], None] | None = None,
):
    """One dict per way: tokens per second at batch 1, over prompts drawn from all tasks."""
    drawn = random.Random(0).sample(tasks, min(timed_prompts, len(tasks)))
    prompts = [task.prompt for task in drawn]
    room = min(decoder.spec.max_length for decoder, _ in ways) - max(map(len, prompts))
    limits = dict(limit=min(longest_answer(tasks), room), ends=text.ends)
    speeds = measure_speed(ways, prompts, **limits, on_prompt=on_prompt)
    return [{"tokens_per_second": speed} for speed in speeds]


def results_by_mode(modes: Sequence[Mode], *measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """{"ar": {...}, "diffusion": [{"threshold": ..., ...}, ...]} from the measurements of each way, merged."""
    results: dict[str, Any] = {"diffusion": []}
    for mode, *parts in zip(modes, *measured, strict=True):
        merged = {key: value for part in parts for key, value in part.items()}
        if mode == AR:
            results["ar"] = merged
        else:
            results["diffusion"].append({"threshold": mode.threshold, **merged})
    return results
