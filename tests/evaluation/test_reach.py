"""Reaching in closed loop: what counts as reached, what the arm sees next, and which forwards are counted."""

import json

import numpy as np
import pytest

from edlm_jax.data import reach
from edlm_jax.decoding import Generation
from edlm_jax.evaluation.compare import AR, compare_accuracy
from edlm_jax.evaluation.tasks import load_tasks, parse_task
from edlm_jax.evaluation.tasks.task import Way
from edlm_jax.pretrained import Text, load_tokenizer
from tests.evaluation.test_tasks import EOS, Oracle
from tests.seeds import fresh_rng

STILL = reach.write_actions(np.zeros((reach.STEPS, 2)))


class Driver(Oracle):
    """Says of each prompt what `drive(angles_J, target_2)` says; a chunk takes two denoising forwards and a commit."""

    def __init__(self, tokenizer, drive):
        super().__init__(tokenizer, None)
        self.drive = drive
        self.spec.max_length = 1000

    def __call__(self, prompts, mode, **settings):
        self.calls.append([self.tokenizer.decode(prompt) for prompt in prompts])
        rows = [[*self.tokenizer.encode(self.drive(*reach.read_prompt(prompt))), EOS] for prompt in self.calls[-1]]
        accepted_at = [[1 + (i >= 10) for i in range(len(row))] for row in rows]
        return Generation(rows, accepted_at, [2] * len(rows), [1] * len(rows))


@pytest.fixture
def tokenizer(tiny_tokenizer_dir):
    return load_tokenizer(tiny_tokenizer_dir)


@pytest.fixture
def tasks(tokenizer, tmp_path):
    """Sixteen held-out starts that are more than a chunk away from their targets."""
    seed, path = int(fresh_rng().integers(10**9)), tmp_path / "test.jsonl"
    examples = (reach.generate_example(seed, index, "test") for index in range(100))
    far = [example for example in examples if not reached(example)][:16]
    path.write_text("".join(f"{json.dumps(example)}\n" for example in far))
    return load_tasks([parse_task(f"reach:path={path}")], tokenizer)


def distance(angles_J, target_2):
    return np.linalg.norm(reach.hand(angles_J) - target_2)


def reached(example):
    """By the first chunk."""
    angles_J, target_2 = reach.read_prompt(example["prompt"])
    return distance(reach.simulate(angles_J, reach.read_actions(example["response"]))[-1], target_2) <= 0.2


def drive(tokenizer, tasks, say):
    decoder = Driver(tokenizer, say)
    (found,) = compare_accuracy([Way(decoder, AR)], tasks, Text(tokenizer, (EOS,)), 16)
    return found, decoder


def test_the_exact_controller_reaches_every_target(tokenizer, tasks):
    found, decoder = drive(tokenizer, tasks, reach.control)
    assert found["accuracy"] == 1 and found["kinds"] == {"reach": 1}
    assert {len(tokenizer.encode(STILL)) + 1} == {question.limit for question in tasks[0].questions}
    # An arm that is there is asked no more: a batch is filled up, so a row counts once however often it was asked.
    chunks, tokens = found["denoise_forwards"] // 2, len(tokenizer.encode(STILL)) + 1
    assert 16 * 2 <= chunks <= 16 * 4 and found["commit_forwards"] == chunks and found["new_tokens"] == chunks * tokens
    assert found["forwards_by_tokens"] == [0] * 10 + [chunks] + [0] * (tokens - 21) + [chunks]
    assert not set(decoder.calls[1]) & set(decoder.calls[0])


def test_each_chunk_is_asked_for_from_where_the_last_one_ended(tokenizer, tasks):
    _, decoder = drive(tokenizer, tasks, lambda angles_J, target_2: STILL)
    first, *later = decoder.calls
    assert len(later) == 3 and all(prompts == first for prompts in later)
    (outcome, *_), (path_TJ, *_) = tasks[0].scorer.attempt(
        tasks[0].questions, Way(Driver(tokenizer, reach.control), AR), Text(tokenizer, (EOS,)), 16
    )
    angles_J, target_2 = tasks[0].questions[0].answer
    for end in range(0, len(path_TJ) - 1, reach.STEPS):
        chunk = reach.control(*reach.read_prompt(reach.write_prompt(path_TJ[end], target_2)))
        moved_TJ = reach.simulate(path_TJ[end], reach.read_actions(chunk))
        np.testing.assert_allclose(path_TJ[end + 1 : end + 1 + reach.STEPS], moved_TJ)
    assert outcome.right and path_TJ[0].tolist() == angles_J.tolist() and distance(path_TJ[-1], target_2) <= 0.15


@pytest.mark.parametrize(
    "bad",
    [
        lambda angles_J, target_2: STILL,
        lambda angles_J, target_2: reach.control(angles_J, target_2)[:-2],  # a word is missing
        lambda angles_J, target_2: reach.control(angles_J, target_2) + " a",
        lambda angles_J, target_2: " ?" * 2 * reach.STEPS,
        lambda angles_J, target_2: reach.write_actions(-reach.read_actions(reach.control(angles_J, target_2))),
    ],
)
def test_bad_answers_reach_nothing(tokenizer, tasks, bad):
    assert drive(tokenizer, tasks, bad)[0]["accuracy"] == 0
