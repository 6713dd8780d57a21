"""Generated questions about what a short text says, for chat models: data/reading.py, put into the chat template.

Questions of the test split are held out by their hash; those of the train split are what a conversion may learn from.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edlm_jax.data.tasks import READING, TaskSource
from edlm_jax.evaluation.tasks.task import Outcome, Question, Scorer, Task, Way, decode_questions
from edlm_jax.pretrained.chat import encode_prompt
from edlm_jax.pretrained.text import Text

_SENTENCE_END = re.compile(r"(?<=[.!?])\s|\n")  # a line's end, or white space that follows a full stop
_LIMIT = 32  # tokens of an answer: what has to be said comes in its first sentence


@dataclass(frozen=True)
class Says(Scorer):
    """The answer's first sentence has `question.answer` in it, in whatever case: more would let it repeat the text."""

    def score(self, questions: Sequence[Question], way: Way, text: Text, batch_size: int) -> list[Outcome]:
        rows = decode_questions(way.decoder, way.mode, questions, text, batch_size, detokenize=text)
        said = [_SENTENCE_END.split(row.text.strip(), maxsplit=1)[0].lower() for row in rows]
        return [Outcome(q.answer.lower() in first, row) for q, first, row in zip(questions, said, rows, strict=True)]


def reading(tokenizer, size: int = 300) -> Task:
    """`size` questions of the test split, all kinds in turn."""
    questions = []
    for index, asked in enumerate(TaskSource(READING, size=size, split="test")):
        prompt = encode_prompt(tokenizer, asked["prompt"], bool(tokenizer.chat_template))
        questions.append(Question(prompt, asked["response"], _LIMIT, asked["kind"], f"question {index} of reading"))
    return Task("reading", tuple(questions), Says())
