"""What an evaluation task is: questions, and a scorer that asks a model and says of each whether the answer is right.

A new task is a file beside this, whose function reads it, and a line in the registry (__init__.py). Scorers are in
scorers.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from edlm_jax.decoding import Decoder, Mode, refuse_prompts
from edlm_jax.errors import InputError
from edlm_jax.evaluation.batches import Decoded
from edlm_jax.models import ModelSpec
from edlm_jax.models.transformer import Transformer
from edlm_jax.pretrained.text import Text


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


def get_field(row: Mapping[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A field of a file's row, or an InputError that says where it is not what it has to be."""
    if name not in row:
        raise InputError(f"{where} has no field {name!r} but {', '.join(map(repr, row))}")
    if not isinstance(row[name], kind) or isinstance(row[name], bool):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise InputError(f"{name} of {where} must be {names}, not {type(row[name]).__name__}")
    return row[name]
