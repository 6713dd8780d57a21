"""Chain noise: levels along a group against a plain loop, and groups wherever they begin."""

import jax
import numpy as np
import pytest

from edlm_jax.diffusion import example_keys
from edlm_jax.diffusion.chain import Chain
from edlm_jax.diffusion.noise import choose_copies
from tests.seeds import fresh_rng
from tests.training.tiny import MASK_ID, make_objective, random_batch

LEAST, MOST = 0.001, 1 - 0.01 * (1 - 0.001)  # t_low, t_eff


def fresh_keys(count):
    return jax.random.split(jax.random.key(fresh_rng().integers(2**31)), count)


def plain_chain(rng, group):
    """As the paper's repository has it."""
    level, levels = rng.uniform(LEAST, MOST), []
    for _ in range(group):
        level = rng.uniform(level, MOST)
        levels.append(level)
    return levels


@pytest.mark.parametrize("group", [2, 3, 5])
def test_levels_are_distributed_as_those_of_a_loop(group):
    """Means, deviations and quantiles of each block's level and of each step, within five deviations."""
    draws, N = 4000, 2 * group + 1
    level_BN = np.asarray(jax.vmap(lambda key: Chain(MASK_ID, 0.1, group).levels(key, N))(fresh_keys(draws)))
    rng = fresh_rng()
    wanted_DG = np.array([plain_chain(rng, group) for _ in range(20 * draws)])
    assert LEAST <= level_BN.min() and level_BN.max() <= MOST + 1e-6
    for first in (0, group, 2 * group):
        ours, wanted = level_BN[:, first : first + group], wanted_DG[:, : N - first]
        assert (np.diff(ours, axis=1) >= 0).all()
        for a, b in ((ours, wanted), (np.diff(ours, axis=1), np.diff(wanted, axis=1))):
            assert (abs(a.mean(0) - b.mean(0)) < 5 * b.std(0) / np.sqrt(draws)).all()
            for q in (0.1, 0.5, 0.9):
                assert (abs((a < np.quantile(b, q, axis=0)).mean(0) - q) < 5 * np.sqrt(0.25 / draws)).all()
    apart = np.corrcoef(level_BN[:, group - 1], level_BN[:, group])[0, 1]
    assert abs(apart) < 5 / np.sqrt(draws)  # groups know nothing of each other


@pytest.mark.parametrize("noisy_length", [0, 96])
def test_blocks_hide_as_much_as_their_levels_say(noisy_length):
    rows, C, group = 50, 4, 3
    objective = make_objective(noise="chain", block_length=C, group=group, noisy_length=noisy_length, half_life=0.2)
    batch = random_batch(rows, 72, documents=(40, 20))
    corruption = jax.device_get(objective.corrupt(example_keys(jax.random.key(3), rows), batch))
    learnable_BM = np.asarray(corruption.copied(batch["loss_mask"] > 0))
    tokens_BM = np.asarray(corruption.copied(batch["tokens"]))
    np.testing.assert_array_equal(corruption.noisy_BM, np.where(corruption.masked_BM, MASK_ID, tokens_BM))
    blocks = lambda x_BM: x_BM.reshape(rows, -1, C)  # noqa: E731
    level_BN = blocks(corruption.noise_level_BM)[:, :, 0]
    np.testing.assert_array_equal(corruption.noise_level_BM, np.repeat(level_BN, C, axis=1))
    assert (np.diff(level_BN.reshape(rows, -1, group), axis=2) >= 0).all()
    assert not (corruption.masked_BM & ~learnable_BM).any()
    counts = np.round(level_BN * blocks(learnable_BM).sum(2))
    np.testing.assert_array_equal(blocks(corruption.masked_BM).sum(2), counts)
    assert objective.layout.pattern(72).group == group and objective.layout.as_decoded().group == 1


@pytest.mark.parametrize("group", [2, 3])
def test_groups_are_dealt_wherever_they_begin(group):
    """A block is as often each of its group, but at the row's ends; no group is without a token to hide."""
    B, N, C = 1500, 16, 3
    useful_N = np.isin(np.arange(N), [4, 5, 6, 11, 15])
    corruptible = np.tile(np.repeat(useful_N, C), (B, 1))
    moved = np.clip(range(1 - group, N), 0, N - group)  # those that reach beyond the row are moved into it
    moved = [start for start in moved if useful_N[start : start + group].any()]
    chosen = choose_copies(fresh_keys(B), corruptible, block_length=C, noisy_length=2 * group * C, group=group)
    copies = np.asarray(chosen).reshape(B, 2, -1)
    first = copies[:, :, 0] // C
    np.testing.assert_array_equal(copies, first[..., None] * C + np.arange(group * C))
    wanted_N = 2 * np.bincount(moved, minlength=N) / len(moved)
    share_N = np.array([(first == n).sum() for n in range(N)]) / B
    assert (abs(share_N - wanted_N) <= 5 * np.sqrt(2 / B)).all() and (share_N[wanted_N == 0] == 0).all()
    every = choose_copies(fresh_keys(B), corruptible, block_length=C, noisy_length=len(moved) * group * C, group=group)
    counts = np.sort(np.asarray(every).reshape(B, len(moved), -1)[:, :, 0] // C, axis=1)
    np.testing.assert_array_equal(counts, np.tile(np.sort(moved), (B, 1)))  # each once, then over again


def test_a_rows_noise_depends_on_its_key_alone():
    objective, rows = make_objective(noise="chain", group=2, noisy_length=32), 6
    batch = random_batch(rows, 32, documents=(20, 9))
    keys_B = fresh_keys(rows)
    whole, some = objective.corrupt(keys_B, batch), {name: value[2:4] for name, value in batch.items()}
    part = objective.corrupt(keys_B[2:4], some)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[2:4], b), whole, part)
