"""The AR model and its conversion on the same tasks: accuracy, tokens per forward and speed in one engine."""

import functools
import itertools
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edlm_jax.data.sources import open_source
from edlm_jax.decoding import Mode
from edlm_jax.decoding.generation import forwards_by_tokens
from edlm_jax.decoding.modes import Autoregressive, Diffusion, Mars, trained_mode
from edlm_jax.diffusion import Layout
from edlm_jax.errors import InputError, check_range
from edlm_jax.evaluation.tasks import check_task, choose_questions, decoded_questions, load_tasks, need_decoded
from edlm_jax.evaluation.tasks.task import Outcome, Task, Way
from edlm_jax.models import Transformer
from edlm_jax.pretrained import Text, load_pretrained
from edlm_jax.reports.progress import Progress
from edlm_jax.training.initial import read_spec
from edlm_jax.training.run import Run

AR = Autoregressive()
Call = Callable[[list[list[int]]], list[list[int]]]  # prompts -> new tokens of each
Prompts = Sequence[list[int]]
OnBatch = Callable[[int], None]  # hears how many batches are finished
Say = Callable[[str], None]  # of a part that is measured
_REPEATS = 3  # timings of each prompt


def check_evaluation(run: Run) -> None:
    """Raises InputError for evaluation settings that could only fail hours later, when training is over."""
    e = run.evaluation
    for threshold in e.thresholds:
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
            raise InputError(f"config.evaluation.thresholds must lie in [0, 1], not {threshold!r}")
    if len(set(e.thresholds)) < len(e.thresholds):
        raise InputError(f"config.evaluation.thresholds must differ, not {tuple(e.thresholds)}")
    if not e.thresholds:
        raise InputError("config.evaluation.thresholds is empty; give at least one, for example (1.0, 0.9)")
    for name in ("batch_size", "timed_prompts"):
        check_range(f"config.evaluation.{name}", getattr(e, name))
    if not e.tasks:
        raise InputError("config.evaluation.tasks is empty; give tasks, or sources of prompts with exact answers")
    for entry in e.tasks:
        check_task(entry)
    for source in run.data.eval_sources:
        open_source(source)


class Origin:
    """What a run begins with, each read when it is first asked for."""

    def __init__(self, run: Run, modes: Sequence[Mode]):
        self.run, self.modes = run, modes

    @functools.cached_property
    def start(self):
        """(spec, tokenizer) of what is trained."""
        return read_spec(self.run.start)

    @functools.cached_property
    def text(self) -> Text:
        """How it reads, and where it ends."""
        return Text.of(*self.start)

    @functools.cached_property
    def ar(self) -> Transformer:
        """The AR model, as ported."""
        return load_pretrained(self.run.start.path, dtype=self.run.start.dtype)

    @functools.cached_property
    def tasks(self) -> tuple[list[Task], list[dict[str, str]]]:
        """(the run's tasks with the questions that can be asked in every mode, those refused)."""
        spec, tokenizer = self.start
        tasks = need_decoded(load_tasks(self.run.evaluation.tasks, tokenizer))
        return choose_questions(tasks, [(spec, mode) for mode in self.modes])


def modes_at(
    layout: Layout, thresholds: Sequence[float], block_lengths: Sequence[int | None] = (None,)
) -> list[Diffusion | Mars]:
    """What a layout trained to decode by, at each threshold in blocks of each length; None is the model's own."""
    mode = trained_mode(layout)
    return [mode(threshold=t, block_length=length) for length in block_lengths for t in thresholds]


def compare(
    ways: Sequence[Way], tasks: Sequence[Task], text: Text, *, batch_size: int, timed_prompts: int
) -> dict[str, Any]:
    """`results_by_mode` of accuracy and speed, measured as far as there is something to measure, and said meanwhile."""
    timed, measured = min(timed_prompts, len(decoded_questions(tasks))), itertools.count(1)
    with Progress(len(ways) + timed, "evaluate") as progress:
        say = lambda what: progress.done(next(measured), what)  # noqa: E731
        accuracy = compare_accuracy(ways, tasks, text, batch_size, say)
        speed = compare_speed(ways, tasks, text, timed_prompts, say)
    return results_by_mode([way.mode for way in ways], accuracy, speed)


def compare_accuracy(
    ways: Sequence[Way], tasks: Sequence[Task], text: Text, batch_size: int, say: Say = lambda what: None
) -> list[dict[str, Any]]:
    """One dict per way: accuracy over all questions and by kind; of decoded ones tokens per forward and forwards."""
    found: dict[Any, list[Outcome]] = {}  # what does not depend on a threshold is measured at one
    kinds, results = [question.kind for task in tasks for question in task.questions], []
    for way in ways:
        outcomes = []
        for task in tasks:
            key = way.decoder, task.name, task.scorer, task.scorer.depends_on(way.mode)
            found[key] = found.get(key) or task.scorer.score(task.questions, way, text, batch_size)
            outcomes += found[key]
        results.append(summarise(kinds, outcomes))
        say(f"{way.mode}: {results[-1]['accuracy']:.3f} right")
    return results


def summarise(kinds: Sequence[str], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What questions of these kinds came to."""
    right, kind_of = np.array([outcome.right for outcome in outcomes], float), np.array(kinds, object)
    rows = [outcome.row for outcome in outcomes if outcome.row]
    new_tokens, denoise = sum(len(row.tokens) for row in rows), sum(row.denoise_forwards for row in rows)
    decoded = {
        "tokens_per_forward": new_tokens / max(denoise, 1),  # commits not counted
        "denoise_forwards": denoise,
        "commit_forwards": sum(row.commit_forwards for row in rows),
        "new_tokens": new_tokens,
        "forwards_by_tokens": forwards_by_tokens((row.accepted_at for row in rows), denoise),
    }
    by_kind = {"kinds": {kind: float(right[kind_of == kind].mean()) for kind in dict.fromkeys(kinds)}}
    return {"accuracy": float(right.mean())} | (decoded if denoise else {}) | by_kind


def compare_speed(
    ways: Sequence[Way], tasks: Sequence[Task], text: Text, timed_prompts: int, say: Say = lambda what: None
) -> list[dict[str, float]]:
    """One dict per way: tokens per second at batch 1, over prompts drawn from all that is decoded; else nothing.

    All ways take turns on each prompt, so that they are comparable on a machine that slows down.
    """
    questions = decoded_questions(tasks)
    if not questions:
        return [{} for _ in ways]
    prompts = [question.prompt for question in random.Random(0).sample(questions, min(timed_prompts, len(questions)))]
    room = min(way.decoder.spec.max_length for way in ways) - max(map(len, prompts))
    limit = min(max(question.limit for question in questions), room)
    how = dict(limit=limit, ends=text.ends)
    calls = {str(way.mode): lambda batch, way=way: way.decoder(batch, way.mode, **how).tokens for way in ways}
    rates = compare_rates(calls, prompts, 1, _REPEATS, lambda count: say("timing"))
    return [{"tokens_per_second": rates[str(way.mode)]} for way in ways]


def compare_rates(
    ways: Mapping[str, Call], prompts: Prompts, batch_size: int, repeats: int, on_batch: OnBatch = lambda count: None
) -> dict[str, float]:
    """Generated tokens per second of each way, prompts taken `batch_size` at a time.

    Ways take turns, in an order drawn anew each time, and a batch's time is the median of its repeats. Each turn is two
    calls of which the second counts: the first one compiles, allocates, and brings back into the caches what the way
    before has driven out.
    """
    batches = [list(prompts[i : i + batch_size]) for i in range(0, len(prompts) - batch_size + 1, batch_size)]
    tokens, seconds, dice = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0.0), random.Random(0)
    for count, batch in enumerate(batches, 1):
        times, made = {name: [] for name in ways}, {}
        for _ in range(repeats):
            for name in dice.sample(list(ways), len(ways)):
                ways[name](batch)
                start = time.perf_counter()
                new = ways[name](batch)
                times[name].append(time.perf_counter() - start)
                made[name] = sum(map(len, new))
        for name in ways:
            tokens[name] += made[name]
            seconds[name] += statistics.median(times[name])
        on_batch(count)
    return {name: tokens[name] / seconds[name] for name in ways}


def results_by_mode(modes: Sequence[Mode], *measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """{"ar": {...}, "diffusion": [{"mode": ..., "threshold": ..., ...}, ...]}, the measurements of each way merged.

    "diffusion" is the converted model. Where a mode has another block length than the model's own, that stands there.
    """
    results: dict[str, Any] = {"diffusion": []}
    for mode, *parts in zip(modes, *measured, strict=True):
        merged = {key: value for part in parts for key, value in part.items()}
        if mode == AR:
            results["ar"] = merged
        else:
            block = {} if mode.block_length is None else {"block_length": mode.block_length}
            results["diffusion"].append({"mode": mode.name, **block, "threshold": mode.threshold, **merged})
    return results
