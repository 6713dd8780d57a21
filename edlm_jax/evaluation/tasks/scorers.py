"""The ways to score an answer: exact text, tests that must pass, the likeliest choice."""

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edlm_jax.decoding import Decoder, Mode
from edlm_jax.evaluation.batches import Decoded, decode_to_longest
from edlm_jax.evaluation.likelihood import check_likelihood, log_likelihood
from edlm_jax.evaluation.programs import passes
from edlm_jax.evaluation.tasks.task import Outcome, Question, Scorer, Way
from edlm_jax.models import ModelSpec
from edlm_jax.pretrained.text import Text, read_after

_AT_ONCE = 4  # programs, each with as much memory as programs.py lets it have


@dataclass(frozen=True)
class ExactMatch(Scorer):
    """The text up to the end is exactly `question.answer`."""

    def score(self, questions: Sequence[Question], way: Way, text: Text, batch_size: int) -> list[Outcome]:
        rows = decode_questions(way.decoder, way.mode, questions, text, batch_size)
        pairs = zip(questions, rows, strict=True)
        return [Outcome(answer_text(row.tokens, q.prompt, text) == q.answer, row) for q, row in pairs]


@dataclass(frozen=True)
class PassesTests(Scorer):
    """A program passes: the text between `question.answer`, what stands (before, behind) it. See programs.py."""

    stop: tuple[str, ...]  # a completion ends before the first of these
    seconds: float  # that a program has

    def score(self, questions: Sequence[Question], way: Way, text: Text, batch_size: int) -> list[Outcome]:
        how = dict(stop=self.stop, detokenize=text)
        rows = decode_questions(way.decoder, way.mode, questions, text, batch_size, **how)
        programs = [row.text.join(question.answer) for question, row in zip(questions, rows, strict=True)]
        with ThreadPoolExecutor(min(os.cpu_count() or 1, _AT_ONCE)) as pool:  # threads that wait for processes
            passed = list(pool.map(lambda program: passes(program, self.seconds), programs))
        return [Outcome(right, row) for right, row in zip(passed, rows, strict=True)]


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
            means = [score.log_likelihood / len(choice) for choice, score in zip(choices, scores, strict=False)]
            outcomes.append(Outcome(int(np.argmax(means)) == right))
        return outcomes


def decode_questions(
    decoder: Decoder, mode: Mode, questions: Sequence[Question], text: Text, batch_size: int, **how
) -> list[Decoded]:
    """Every question's result."""
    prompts, limits = [question.prompt for question in questions], [question.limit for question in questions]
    return decode_to_longest(decoder, prompts, limits, batch_size=batch_size, mode=mode, ends=text.ends, **how)


def answer_text(tokens: Sequence[int], prompt: Sequence[int], text: Text) -> str:
    """The text of generated tokens up to the first end."""
    until_end = itertools.takewhile(lambda token: token not in text.ends, tokens)
    return read_after(text.whole, prompt, list(until_end))
