"""Visited states: counted as a decoder met them, drawn as often, refused where they are not known."""

import json
from collections import Counter

import jax
import numpy as np
import pytest

from edlm_jax.decoding import Decoder, generate
from edlm_jax.diffusion import example_keys
from edlm_jax.diffusion.visited import count_states
from edlm_jax.errors import InputError
from tests.decoding.tiny import MASK, make_model, prompts
from tests.seeds import fresh_rng
from tests.training.tiny import MASK_ID, make_objective, random_batch

C = 4


def write(path, rows):
    path.write_text("".join(json.dumps(dict(response="", accepted_at=row)) + "\n" for row in rows))
    return str(path)


def test_counted_as_watched():
    """A watcher of one row sees the block before each forward, apart from the first."""
    decoder, (prompt,) = Decoder(make_model()), prompts(fresh_rng(), [6])
    settings = dict(max_new_tokens=3 * C, threshold=0.6)
    result = generate(decoder, [prompt], **settings)
    met = count_states(result.accepted_at, C)
    assert met.total() == result.denoise_forwards and met[(True,) * C] == 3  # each block begins all masked
    at = result.accepted_at[0]
    expected, block = Counter(), [MASK] * C
    for forward in range(1, result.denoise_forwards + 1):
        first = min(i for i in range(len(at)) if at[i] >= forward) // C * C
        block = [MASK if at[i] >= forward else 0 for i in range(first, first + C)]
        expected[tuple(token == MASK for token in block)] += 1
    assert met == expected


def test_what_lies_behind_the_end_is_hidden():
    met = count_states([[1, 3, 1, 2, 5, 4]], C)
    T, F = True, False
    assert met == Counter({(T, T, T, T): 2, (F, T, F, T): 1, (F, T, F, F): 1, (T, F, T, T): 1})


@pytest.mark.parametrize("noisy_length", [0, 96])
def test_drawn_as_often_as_met(tmp_path, noisy_length):
    rows = 200
    path = write(tmp_path / "own.jsonl", [[1, 3, 1, 2], [1, 1, 1, 1], [1, 1, 1, 1]])
    objective = make_objective(noise="visited", states=path, noisy_length=noisy_length)
    batch = random_batch(rows, 64, documents=(64,)) | dict(loss_mask=np.ones((rows, 64), np.int32))
    corruption = jax.device_get(objective.corrupt(example_keys(jax.random.key(1), rows), batch))
    states_NC = corruption.masked_BM.reshape(-1, C)
    found, n = Counter(map(tuple, states_NC.tolist())), len(states_NC)
    for state, p in (((1, 1, 1, 1), 0.6), ((0, 1, 0, 1), 0.2), ((0, 1, 0, 0), 0.2)):
        assert abs(found[tuple(map(bool, state))] - n * p) < 4 * (n * p * (1 - p)) ** 0.5
    assert found.total() == n and len(found) == 3
    levels = np.repeat(states_NC.mean(axis=1), C)
    np.testing.assert_allclose(corruption.noise_level_BM.reshape(-1), levels, rtol=1e-6)
    np.testing.assert_array_equal(corruption.noisy_BM == MASK_ID, corruption.masked_BM)


def test_prompts_are_never_hidden_and_levels_count_what_may_be(tmp_path):
    path = write(tmp_path / "own.jsonl", [[1, 2, 3, 4]])
    objective, batch = make_objective(noise="visited", states=path), random_batch(30, 32, documents=(20, 11))
    corruption = jax.device_get(objective.corrupt(example_keys(jax.random.key(5), 30), batch))
    learnable = batch["loss_mask"] > 0
    assert corruption.masked_BM.any() and not corruption.masked_BM[~learnable].any()
    some = corruption.masked_BM.reshape(-1, C).any(axis=1)
    share = corruption.masked_BM.reshape(-1, C).sum(axis=1) / np.maximum(learnable.reshape(-1, C).sum(axis=1), 1)
    np.testing.assert_allclose(corruption.noise_level_BM.reshape(-1, C)[some, 0], share[some], rtol=1e-6)
    assert (corruption.noise_level_BM > 0).all()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "cannot read"),
        ('{"response": "a"}\n', "does not say when tokens were accepted"),
        ("no json\n", "does not say when tokens were accepted"),
        ("", "the file has no tokens"),
        ('{"accepted_at": [1]}\n{"accepted_at": [1, 0]}\n', "line 2: accepted_at must be a list of forwards"),
        ('{"accepted_at": 3}\n', "line 1: accepted_at must be a list of forwards"),
    ],
)
def test_a_file_without_states_is_refused(tmp_path, text, reason):
    path = tmp_path / "own.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=reason):
        make_objective(noise="visited", states=str(path))
    with pytest.raises(InputError, match="needs config.objective.states"):
        make_objective(noise="visited")


def test_a_file_that_no_noise_would_read_is_refused():
    with pytest.raises(InputError, match="states is read under noise='visited' alone, not 'masks'"):
        make_objective(states="own.jsonl")


def test_other_blocks_than_those_met_are_refused(tmp_path):
    objective = make_objective(noise="visited", states=write(tmp_path / "own.jsonl", [[1, 2, 3, 4]]))
    with pytest.raises(InputError, match="are of blocks of 4, not 8"):
        objective.noise.hide(jax.random.key(0), np.ones(8, bool), 8)
