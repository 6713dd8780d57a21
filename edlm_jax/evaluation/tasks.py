"""Exact match on tasks with one right answer, and tokens per second while answering them."""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from edlm_jax.data.documents import Document
from edlm_jax.data.tokenized import open_tokenized
from edlm_jax.decoding import Decoder, Mode, refuse_prompts
from edlm_jax.errors import InputError
from edlm_jax.evaluation.batches import Decoded, decode_batches
from edlm_jax.models import ModelSpec
from edlm_jax.pretrained.text import Text, read_after


@dataclasses.dataclass(frozen=True)
class Task:
    """A prompt as tokens, the text that must follow it, and the number of that text's tokens with the end token.

    The text is read from the tokens that training would show, for a tokenizer may write a response in another way: it
    may put a space before it or compose its accents.
    """

    prompt: list[int]
    answer: str
    answer_tokens: int
    kind: str
    document: str  # where it comes from, to name it by


@dataclasses.dataclass(frozen=True)
class Score:
    """What decoding all tasks in one way gave."""

    accuracy: float
    kinds: dict[str, float]
    new_tokens: int
    denoise_forwards: int
    commit_forwards: int

    @property
    def tokens_per_forward(self) -> float:
        """Generated tokens per denoising forward, commits not counted."""
        return self.new_tokens / max(self.denoise_forwards, 1)


def has_prompts(source: Sequence[Document]) -> bool:
    """Are a source's documents, as far as its first readable one tells, prompts with responses?"""
    for index in range(len(source)):
        with contextlib.suppress(InputError):  # who reads it all will count and name it
            return "prompt" in source[index]
    return False


def load_tasks(sources: Sequence[Mapping[str, Any]], tokenizer) -> list[Task]:
    """The tasks of all sources; their documents must be a prompt with a response."""
    tasks, text = [], Text(tokenizer)
    for source in sources:
        documents = open_tokenized(source, tokenizer)
        for index, tokens in enumerate(documents):
            if not tokens:
                continue  # of no use: counted and named
            document = documents.source[index]
            if "prompt" not in document:
                raise InputError(f"a task needs a prompt and a response; {dict(source)} has {', '.join(document)}")
            ((tokens_L, loss_mask_L),) = tokens  # prompt and answer split as in training
            prompt, answer = (tokens_L[loss_mask_L == learned].tolist() for learned in (0, 1))
            kind = document["kind"] if "kind" in document else "all"
            expected = read_after(text.whole, prompt, answer[:-1])
            tasks.append(Task(prompt, expected, len(answer), kind, documents.locate(index)))
    if not tasks:
        raise InputError("no tasks to evaluate: the task sources hold no document")
    return tasks


def choose_tasks(
    tasks: Sequence[Task], ways: Sequence[tuple[ModelSpec, Mode]]
) -> tuple[list[Task], list[dict[str, str]]]:
    """(the tasks that every way can decode, {"document", "reason"} of each other one, said at once).

    A way needs room for a task's prompt and its right answer. Where none is left, an InputError says the first reason.
    """
    kept, refused = [], []
    for task in tasks:
        how = dict(names=[f"the prompt of {task.document}"], limit=task.answer_tokens)
        reasons = [refuse_prompts(spec, [task.prompt], mode, **how) for spec, mode in ways]
        if found := [reason[0] for reason in reasons if reason]:
            refused.append({"document": task.document, "reason": found[0]})
        else:
            kept.append(task)
    if not kept:
        raise InputError(f"no task can be evaluated: {refused[0]['reason']}")
    for entry in refused:
        logging.warning("not evaluated: %s", entry["reason"])
    return kept, refused


def decode_tasks(decoder: Decoder, tasks: Sequence[Task], text: Text, *, batch_size: int, mode: Mode) -> list[Decoded]:
    """Every task's result: with room for the longest right answer, or for its own where its prompt leaves no more."""
    longest, decoded = longest_answer(tasks), {}
    fits = [len(task.prompt) + longest <= decoder.spec.max_length for task in tasks]
    limits = [longest if fit else task.answer_tokens for fit, task in zip(fits, tasks, strict=True)]
    for limit in sorted(set(limits), reverse=True):
        members = [index for index in range(len(tasks)) if limits[index] == limit]
        how = dict(batch_size=batch_size, mode=mode, limit=limit, ends=text.ends)
        decoded |= zip(members, decode_batches(decoder, [tasks[i].prompt for i in members], **how), strict=True)
    return [decoded[index] for index in range(len(tasks))]


def score_tasks(decoder: Decoder, tasks: Sequence[Task], text: Text, *, batch_size: int, mode: Mode) -> Score:
    """Decode every task in batches; an answer counts when its text up to the end is exactly the wanted one."""
    decoded = decode_tasks(decoder, tasks, text, batch_size=batch_size, mode=mode)
    rows = zip(decoded, tasks, strict=True)
    correct = np.array([answer_text(row.tokens, task.prompt, text) == task.answer for row, task in rows], float)
    kinds = {
        kind: float(np.mean([correct[i] for i, task in enumerate(tasks) if task.kind == kind]))
        for kind in dict.fromkeys(task.kind for task in tasks)
    }
    return Score(
        accuracy=float(correct.mean()),
        kinds=kinds,
        new_tokens=sum(len(row.tokens) for row in decoded),
        denoise_forwards=sum(row.denoise_forwards for row in decoded),
        commit_forwards=sum(row.commit_forwards for row in decoded),
    )


def longest_answer(tasks: Sequence[Task]) -> int:
    """Tokens of the longest right answer: a longer one is wrong however it goes on."""
    return max(task.answer_tokens for task in tasks)


def answer_text(tokens: Sequence[int], prompt: Sequence[int], text: Text) -> str:
    """The text of generated tokens up to the first end."""
    until_end = itertools.takewhile(lambda token: token not in text.ends, tokens)
    return read_after(text.whole, prompt, list(until_end))


def measure_speed(
    ways: Sequence[tuple[Decoder, Mode]],
    prompts: Sequence[list[int]],
    *,
    limit: int,
    ends: Sequence[int],
    repeats: int = 3,
    on_prompt: Callable[[int], None] | None = None,
) -> list[float]:
    """Generated tokens per second at batch 1 for each (decoder, mode), compilation excluded.

    The ways take turns on each prompt, so that a machine that slows down slows all of them; a prompt's time is the
    median of its repeats. `on_prompt` is called with the number of prompts that are finished.
    """
    seconds, new_tokens = [0.0] * len(ways), [0] * len(ways)
    for count, prompt in enumerate(prompts, 1):
        times_WR = np.zeros((len(ways), repeats))
        for repeat, (way, (decoder, mode)) in itertools.product(range(-1, repeats), enumerate(ways)):
            start = time.perf_counter()
            result = decoder([prompt], mode, limit=limit, ends=ends)
            if repeat >= 0:
                times_WR[way, repeat] = time.perf_counter() - start
            else:  # this pass may have compiled: it only counts the tokens
                new_tokens[way] += len(result.tokens[0])
        for way, median in enumerate(np.median(times_WR, axis=1)):
            seconds[way] += float(median)
        if on_prompt is not None:
            on_prompt(count)
    return [tokens / time_spent for tokens, time_spent in zip(new_tokens, seconds, strict=True)]
