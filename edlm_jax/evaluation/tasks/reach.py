"""Reaching with a two-joint arm, in closed loop: a prompt of data/reach.py, then those of what the arm sees later.

    {"prompt": "reach u v to r e ->", "response": " a a a a a a a a a a a j a m"}

The response only says how long an answer is.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from edlm_jax.data.reach import hand, read_actions, read_prompt, simulate, write_prompt
from edlm_jax.data.sources import read_objects
from edlm_jax.errors import InputError
from edlm_jax.evaluation.batches import Decoded
from edlm_jax.evaluation.tasks.task import Outcome, Question, Scorer, Task, Way, decode_questions, get_field, text_of
from edlm_jax.pretrained.encode import encode_more, encode_text
from edlm_jax.pretrained.text import Text


@dataclasses.dataclass(frozen=True)
class Reaches(Scorer):
    """The hand is near the target, `question.answer` (angles_J, target_2), when a chunk has been carried out.

    What is no whole chunk ends the attempt.
    """

    chunks: int  # at most, each from what the arm sees by then
    metres: float  # that are near

    def score(self, questions: Sequence[Question], way: Way, text: Text, batch_size: int) -> list[Outcome]:
        return self.attempt(questions, way, text, batch_size)[0]

    def attempt(
        self, questions: Sequence[Question], way: Way, text: Text, batch_size: int
    ) -> tuple[list[Outcome], list[np.ndarray]]:
        """(the outcomes, the joints' angles at the start and after each step: [1 + T, J] of each question)."""
        paths, targets = [question.answer[0][None] for question in questions], [q.answer[1] for q in questions]
        outcomes, going = [Outcome(False, Decoded([], None, 0, 0, []))] * len(questions), list(range(len(questions)))
        for _ in range(self.chunks):
            seen = [encode_text(text.tokenizer, write_prompt(paths[i][-1], targets[i])) for i in going]
            asked = [dataclasses.replace(questions[i], prompt=prompt) for i, prompt in zip(going, seen, strict=True)]
            rows = decode_questions(way.decoder, way.mode, asked, text, batch_size) if asked else []
            for i, prompt, row in zip(list(going), seen, rows, strict=True):
                outcomes[i] = Outcome(False, _joined(outcomes[i].row, row))
                try:
                    velocity_TJ = read_actions(text_of(row.tokens, prompt, text))
                except InputError:
                    going.remove(i)
                    continue
                paths[i] = np.concatenate([paths[i], simulate(paths[i][-1], velocity_TJ)])
                if np.linalg.norm(hand(paths[i][-1]) - targets[i]) <= self.metres:
                    outcomes[i] = outcomes[i]._replace(right=True)
                    going.remove(i)
        return outcomes, paths


def reach(tokenizer, path: str, chunks: int = 4, metres: float = 0.15) -> Task:
    """The share of JSON lines, as data/reach.py writes them, whose target is reached."""
    questions = []
    for where, row in read_objects(path):
        prompt, response = (get_field(row, field, str, where) for field in ("prompt", "response"))
        limit = len(encode_more(tokenizer, response, prompt)) + 1
        questions.append(Question(encode_text(tokenizer, prompt), read_prompt(prompt), limit, "reach", where))
    return Task("reach", tuple(questions), Reaches(chunks, metres))


def _joined(before: Decoded, after: Decoded) -> Decoded:
    """As if they were one row's."""
    later = [before.denoise_forwards + at if at else 0 for at in after.accepted_at]
    denoise = before.denoise_forwards + after.denoise_forwards
    commit = before.commit_forwards + after.commit_forwards
    return Decoded(before.tokens + after.tokens, None, denoise, commit, before.accepted_at + later)
