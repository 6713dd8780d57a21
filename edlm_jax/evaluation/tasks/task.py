"""What an evaluation task is: questions, and a scorer that asks a model and says of each whether the answer is right.

A new task is a file beside this, whose function reads it, and a line in the registry (__init__.py).
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from edlm_jax.decoding import Decoder, Mode, refuse_prompts
from edlm_jax.errors import InputError
from edlm_jax.evaluation.batches import Decoded, decode_to_longest
from edlm_jax.evaluation.likelihood import check_likelihood, log_likelihood
from edlm_jax.evaluation.programs import passes
from edlm_jax.models import ModelSpec, Transformer
from edlm_jax.pretrained.text import Text, read_after

_AT_ONCE = 4  # programs, each with as much memory as programs.py lets it have


@dataclass(frozen=True)
class Question:
    """A prompt as tokens, and what its scorer compares with what the model makes of it."""

    prompt: list[int]
    answer: Any  # as the scorer documents it
    limit: int  # new tokens that there must be room for
    kind: str  # accuracies are also told by it
    document: str  # where it comes from, to name it by


class Way(NamedTuple):
    """How a model answers."""

    decoder: Decoder
    mode: Mode
    model: Transformer | None = None  # the decoder's; only likelihoods ask it


class Outcome(NamedTuple):
    """What came of a question."""

    right: bool
    row: Decoded | None = None  # None: it is not decoded


@dataclass(frozen=True)
class Scorer:
    """The base: says which answers are right."""

    decodes: ClassVar[bool] = True

    def refuse(self, spec: ModelSpec, mode: Mode, question: Question) -> str | None:
        """Why a model cannot be asked this, in one line; it needs room for the prompt and a right answer."""
        how = dict(names=[f"the prompt of {question.document}"], limit=question.limit)
        return refuse_prompts(spec, [question.prompt], mode, **how).get(0)

    def depends_on(self, mode: Mode) -> Any:
        """What of a mode the outcomes depend on."""
        return mode

    def score(self, questions: Sequence[Question], way: Way, text: Text, batch_size: int) -> list[Outcome]:
        """Of each question."""
        raise NotImplementedError


@dataclass(frozen=True)
class Task:
    """Questions with their scorer."""

    name: str
    questions: tuple[Question, ...]
    scorer: Scorer


@dataclass(frozen=True)
class ExactMatch(Scorer):
    """The text up to the end is exactly `question.answer`."""

    def score(self, questions: Sequence[Question], way: Way, text: Text, batch_size: int) -> list[Outcome]:
        rows = decode_questions(way.decoder, way.mode, questions, text, batch_size)
        pairs = zip(questions, rows, strict=True)
        return [Outcome(text_of(row.tokens, q.prompt, text) == q.answer, row) for q, row in pairs]


@dataclass(frozen=True)
class PassesTests(Scorer):
    """A program passes: the text between `question.answer`, what stands (before, behind) it. See programs.py."""

    stop: tuple[str, ...]  # a completion ends before the first of these
    seconds: float  # that a program has

    def score(self, questions: Sequence[Question], way: Way, text: Text, batch_size: int) -> list[Outcome]:
        rows = decode_questions(way.decoder, way.mode, questions, text, batch_size, stop=self.stop, detokenize=text)
        programs = [row.text.join(question.answer) for question, row in zip(questions, rows, strict=True)]
        with ThreadPoolExecutor(min(os.cpu_count() or 1, _AT_ONCE)) as pool:  # threads that wait for processes
            passed = pool.map(passes, programs, itertools.repeat(self.seconds))
            return list(map(Outcome, passed, rows))


@dataclass(frozen=True)
class LikeliestChoice(Scorer):
    """The likeliest choice a token is the right one; `question.answer`: (tokens of each choice, the right one's index).

    Likelihoods are exact for AR and the modes that read next tokens, else estimates of a bound (likelihood.py).
    """

    num_samples: int  # of an estimate

    decodes: ClassVar[bool] = False

    def refuse(self, spec: ModelSpec, mode: Mode, question: Question) -> str | None:
        check_likelihood(spec, self.depends_on(mode))
        return super().refuse(spec, mode, question)

    def depends_on(self, mode: Mode) -> Any:
        return "ar" if mode.causal else "diffusion"

    def score(self, questions: Sequence[Question], way: Way, text: Text, batch_size: int) -> list[Outcome]:
        pairs = [(question.prompt, choice) for question in questions for choice in question.answer[0]]
        scores = iter(log_likelihood(way.model, pairs, mode=self.depends_on(way.mode), num_samples=self.num_samples))
        outcomes = []
        for choices, right in (question.answer for question in questions):
            means = [next(scores).log_likelihood / len(choice) for choice in choices]
            outcomes.append(Outcome(int(np.argmax(means)) == right))
        return outcomes


def decode_questions(
    decoder: Decoder, mode: Mode, questions: Sequence[Question], text: Text, batch_size: int, **how
) -> list[Decoded]:
    """Every question's result."""
    prompts, limits = [question.prompt for question in questions], [question.limit for question in questions]
    return decode_to_longest(decoder, prompts, limits, batch_size=batch_size, mode=mode, ends=text.ends, **how)


def text_of(tokens: Sequence[int], prompt: Sequence[int], text: Text) -> str:
    """The text of generated tokens up to the first end."""
    until_end = itertools.takewhile(lambda token: token not in text.ends, tokens)
    return read_after(text.whole, prompt, list(until_end))


def get_field(row: Mapping[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A field of a file's row, or an InputError that says where it is not what it has to be."""
    if name not in row:
        raise InputError(f"{where} has no field {name!r} but {', '.join(map(repr, row))}")
    if not isinstance(row[name], kind) or isinstance(row[name], bool):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise InputError(f"{name} of {where} must be {names}, not {type(row[name]).__name__}")
    return row[name]
