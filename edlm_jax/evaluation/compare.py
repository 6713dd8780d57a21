"""The AR model and its conversion on the same tasks: accuracy, tokens per forward and speed in one engine."""

import itertools
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edlm_jax.data.sources import open_source
from edlm_jax.decoding import Mode
from edlm_jax.decoding.generation import forwards_by_tokens
from edlm_jax.decoding.modes import Autoregressive, Diffusion
from edlm_jax.errors import InputError
from edlm_jax.evaluation.tasks import check_task, decoded_questions
from edlm_jax.evaluation.tasks.task import Outcome, Task, Way
from edlm_jax.pretrained import Text
from edlm_jax.training.run import Run

AR = Autoregressive()


def check_evaluation(run: Run) -> None:
    """Raises InputError for evaluation settings that could only fail hours later, when training is over."""
    e = run.evaluation
    for threshold in e.thresholds:
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
            raise InputError(f"config.evaluation.thresholds must lie in [0, 1], not {threshold!r}")
    if not e.thresholds:
        raise InputError("config.evaluation.thresholds is empty; give at least one, for example (1.0, 0.9)")
    for name in ("batch_size", "timed_prompts"):
        if getattr(e, name) < 1:
            raise InputError(f"config.evaluation.{name} must be positive, not {getattr(e, name)}")
    if not e.tasks:
        raise InputError("config.evaluation.tasks is empty; give tasks, or sources of prompts with exact answers")
    for entry in e.tasks:
        check_task(entry)
    for source in run.data.eval_sources:
        open_source(source)


def diffusion_at(thresholds: Sequence[float]) -> list[Diffusion]:
    """Block diffusion at each threshold."""
    return [Diffusion(threshold=threshold) for threshold in thresholds]


def compare_accuracy(ways: Sequence[Way], tasks: Sequence[Task], text: Text, batch_size: int) -> list[dict[str, Any]]:
    """One dict per way: accuracy over all questions and by kind; of decoded ones tokens per forward and forwards."""
    found: dict[Any, list[Outcome]] = {}  # what does not depend on a threshold is measured at one
    results = []
    for way in ways:
        outcomes = []
        for task in tasks:
            key = way.decoder, task.name, task.scorer, task.scorer.depends_on(way.mode)
            found[key] = found.get(key) or task.score(way, text, batch_size)
            outcomes += found[key]
        results.append(summarise([question.kind for task in tasks for question in task.questions], outcomes))
    return results


def summarise(kinds: Sequence[str], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What questions of these kinds came to."""
    right = np.array([outcome.right for outcome in outcomes], float)
    places = {kind: [i for i, other in enumerate(kinds) if other == kind] for kind in dict.fromkeys(kinds)}
    new_tokens, denoise, commit = (sum(outcome[field] for outcome in outcomes) for field in (1, 2, 3))
    decoded = {
        "tokens_per_forward": new_tokens / max(denoise, 1),  # commits not counted
        "denoise_forwards": denoise,
        "commit_forwards": commit,
        "new_tokens": new_tokens,
        "forwards_by_tokens": forwards_by_tokens((outcome.accepted_at for outcome in outcomes), denoise),
    }
    by_kind = {"kinds": {kind: float(right[members].mean()) for kind, members in places.items()}}
    return {"accuracy": float(right.mean())} | (decoded if denoise else {}) | by_kind


def compare_speed(
    ways: Sequence[Way],
    tasks: Sequence[Task],
    text: Text,
    timed_prompts: int,
    on_prompt: Callable[[int], None] | None = None,
) -> list[dict[str, float]]:
    """One dict per way: tokens per second at batch 1, over prompts drawn from all that is decoded; else nothing."""
    questions = decoded_questions(tasks)
    if not questions:
        return [{} for _ in ways]
    prompts = [question.prompt for question in random.Random(0).sample(questions, min(timed_prompts, len(questions)))]
    room = min(way.decoder.spec.max_length for way in ways) - max(map(len, prompts))
    limit = min(max(question.limit for question in questions), room)
    speeds = measure_speed(ways, prompts, limit=limit, ends=text.ends, on_prompt=on_prompt)
    return [{"tokens_per_second": speed} for speed in speeds]


def measure_speed(
    ways: Sequence[Way],
    prompts: Sequence[list[int]],
    *,
    limit: int,
    ends: Sequence[int],
    repeats: int = 3,
    on_prompt: Callable[[int], None] | None = None,
) -> list[float]:
    """Generated tokens per second at batch 1 in each way, compilation excluded.

    The ways take turns on each prompt, so that a machine that slows down slows all of them; a prompt's time is the
    median of its repeats. `on_prompt` is called with the number of prompts that are finished.
    """
    seconds, new_tokens = [0.0] * len(ways), [0] * len(ways)
    for count, prompt in enumerate(prompts, 1):
        times_WR = np.zeros((len(ways), repeats))
        for repeat, (index, way) in itertools.product(range(-1, repeats), enumerate(ways)):
            start = time.perf_counter()
            result = way.decoder([prompt], way.mode, limit=limit, ends=ends)
            if repeat >= 0:
                times_WR[index, repeat] = time.perf_counter() - start
            else:  # this pass may have compiled: it only counts the tokens
                new_tokens[index] += len(result.tokens[0])
        for index, median in enumerate(np.median(times_WR, axis=1)):
            seconds[index] += float(median)
        if on_prompt is not None:
            on_prompt(count)
    return [tokens / time_spent for tokens, time_spent in zip(new_tokens, seconds, strict=True)]


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
