"""The noise: how much, where, from which key. Statistics are of fresh draws with bounds of at least five deviations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edlm_jax.diffusion import corrupt
from edlm_jax.diffusion.masks import EPSILON
from edlm_jax.diffusion.noise import choose_copies
from edlm_jax.errors import InputError
from tests.seeds import fresh_rng

MASK = 99


def draw(B=64, L=48, C=8, *, half_life=0.1, corruptible=None, key=None):
    key = jax.random.key(fresh_rng().integers(2**31)) if key is None else key
    tokens_BL = jnp.asarray(fresh_rng().integers(0, MASK, (B, L)))
    corruptible = np.ones((B, L), bool) if corruptible is None else corruptible
    noisy, masked, level = corrupt(key, tokens_BL, corruptible, block_length=C, mask_id=MASK, half_life=half_life)
    np.testing.assert_array_equal(noisy, np.where(masked, MASK, tokens_BL))
    return np.array(masked), np.array(level)


@pytest.mark.parametrize("half_life", [0.0, 0.05, 0.1, 1.0, float("inf")])
def test_each_block_hides_round_t_times_its_corruptible_positions(half_life):
    corruptible = fresh_rng().random((64, 45)) < 0.7  # prompts, padding, and a short last block
    masked, level = draw(L=45, half_life=half_life, corruptible=corruptible)
    assert not (masked & ~corruptible).any()
    for start in range(0, 45, 8):
        block = slice(start, start + 8)
        t = level[:, start]
        assert (level[:, block] == t[:, None]).all()
        assert (masked[:, block].sum(1) == np.round(t * corruptible[:, block].sum(1))).all()
    assert level.min() >= EPSILON and level.max() <= 1
    assert len(np.unique(level)) > 64 * 6 - 4  # one draw a block; two in 2**23 may be the same


def test_half_life_zero_hides_the_rightmost():
    masked, _ = draw(half_life=0.0)
    blocks = masked.reshape(-1, 8)
    assert (np.sort(blocks, axis=1) == blocks).all()


def test_weights_are_those_of_the_paper():
    """With one position to hide, it is position i with probability w_i / sum w."""
    C, lam = 8, 0.25
    masked, level = draw(B=6000, L=C, C=C, half_life=lam)
    one = masked.sum(1) == 1
    t = level[one, 0]
    weights = np.exp(np.log(2) / (lam * C) * (1 - t)[:, None] * np.arange(C))
    expected = (weights / weights.sum(1, keepdims=True)).sum(0)
    counts = masked[one].sum(0)
    assert one.sum() > 400
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all(), (counts, expected)


def test_later_tokens_hide_more_often_and_infinite_half_life_is_uniform():
    weighted = draw(B=400, half_life=0.1)[0].reshape(-1, 8).mean(0)
    uniform = draw(B=400, half_life=float("inf"))[0].reshape(-1, 8).mean(0)
    assert weighted[-1] - weighted[0] > 0.3
    assert np.abs(uniform - uniform.mean()).max() < 5 * 0.5 / np.sqrt(2400)


def test_the_uniform_baseline_has_one_level_a_row_and_independent_positions():
    masked, level = draw(B=300, L=200, half_life=None)
    assert (level == level[:, :1]).all()
    rate, t = masked.mean(1), level[:, 0]
    assert (np.abs(rate - t) < 5 * np.sqrt(0.25 / 200)).all()
    assert np.abs(t.mean() - 0.5) < 5 * np.sqrt(1 / 12 / 300)


@pytest.mark.parametrize("half_life", [0.1, None])
def test_a_rows_noise_depends_on_its_key_alone(half_life):
    key = jax.random.key(fresh_rng().integers(2**31))
    keys_B = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(12))
    whole = draw(B=12, key=key, half_life=half_life)
    halves = [draw(B=6, key=keys_B[start : start + 6], half_life=half_life) for start in (0, 6)]
    for index in range(2):
        np.testing.assert_array_equal(whole[index], np.concatenate([half[index] for half in halves]))
    assert (whole[0][0] != whole[0][1]).any()


def test_bad_half_lives_are_refused():
    for half_life in (-0.1, float("nan")):
        with pytest.raises(InputError, match="half_life"):
            draw(half_life=half_life)


@pytest.mark.parametrize("noisy_length", [12, 36, 60])
def test_copies_are_dealt_to_the_blocks_with_something_to_mask(noisy_length):
    B, L, C = 2000, 48, 6
    corruptible = np.zeros((B, L), bool)
    corruptible[:, 7] = corruptible[:, 18:30] = corruptible[:, 47] = True  # blocks 1, 3, 4 and 7
    keys = jax.random.split(jax.random.key(fresh_rng().integers(2**31)), B)
    copies = np.array(choose_copies(keys, corruptible, block_length=C, noisy_length=noisy_length))
    blocks = copies[:, ::C] // C
    assert (copies == (blocks[..., None] * C + np.arange(C)).reshape(B, -1)).all()  # whole blocks
    counts = np.stack([(blocks == n).sum(1) for n in range(L // C)], axis=1)
    assert not counts[:, [0, 2, 5, 6]].any()
    counts = counts[:, [1, 3, 4, 7]]
    assert (counts.max(1) - counts.min(1) <= 1).all()
    share, wanted = counts.mean(0), noisy_length / C / 4  # every block has the same chance of one more
    assert (abs(share - wanted) <= 5 * np.sqrt(0.25 / B)).all()


def test_rows_without_anything_to_mask_stay_as_they_are():
    copies = choose_copies(jax.random.split(jax.random.key(0), 3), np.zeros((3, 8)), block_length=4, noisy_length=8)
    assert copies.shape == (3, 8) and ((copies >= 0) & (copies < 8)).all()


def test_the_choice_of_a_row_follows_from_its_key_alone():
    keys = jax.random.split(jax.random.key(fresh_rng().integers(2**31)), 5)
    corruptible = fresh_rng().random((5, 40)) < 0.2
    choose = lambda rows: choose_copies(keys[rows], corruptible[rows], block_length=4, noisy_length=16)  # noqa: E731
    np.testing.assert_array_equal(choose(slice(None))[3:4], choose(slice(3, 4)))
