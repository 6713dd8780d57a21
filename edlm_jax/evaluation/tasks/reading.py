"""Generated questions about what a short text says, for chat models: data/reading.py, put into the chat template.

Questions of the test split are held out by their hash; those of the train split are what a conversion may learn from.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edlm_jax.data.tasks import READING, TaskSource
from edlm_jax.evaluation.tasks.scorers import decode_questions
from edlm_jax.evaluation.tasks.task import Outcome, Question, Scorer, Task, Way
from edlm_jax.pretrained.chat import encode_prompt
from edlm_jax.pretrained.text import Text

_LIMIT = 32  # tokens of an answer: what has to be said comes in its first sentence


@dataclass(frozen=True)
class Says(Scorer):
    """The answer's first sentence has `question.answer` in it, in whatever case: more would let it repeat the text."""

    def score(self, questions: Sequence[Question], way: Way, text: Text, batch_size: int) -> list[Outcome]:
        rows = decode_questions(way.decoder, way.mode, questions, text, batch_size, detokenize=text)
        pairs = zip(questions, rows, strict=True)
        return [Outcome(q.answer.lower() in first_sentence(row.text).lower(), row) for q, row in pairs]


def first_sentence(text: str) -> str:
    """Up to the first line's end, or the first full stop that white space follows."""
    return re.split(r"(?<=[.!?])\s|\n", text.strip(), maxsplit=1)[0]


def reading(tokenizer, size: int = 300) -> Task:
    """`size` questions of the test split, all kinds in turn."""
    questions = []
    for index, asked in enumerate(TaskSource(READING, size=size, split="test")):
        prompt = encode_prompt(tokenizer, asked["prompt"], bool(tokenizer.chat_template))
        questions.append(Question(prompt, asked["response"], _LIMIT, asked["kind"], f"question {index} of reading"))
    return Task("reading", tuple(questions), Says())
