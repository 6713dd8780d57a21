"""Mixed noise: how levels are spread over a row, and how often a token is hidden, replaced or left as it is."""

import jax
import numpy as np
import pytest

from edlm_jax.diffusion import example_keys
from tests.training.tiny import MASK_ID, make_objective, random_batch


@pytest.mark.parametrize("noisy_length", [0, 96])
def test_levels_are_spread_and_shares_follow_them(noisy_length):
    rows, C = 400, 4
    objective = make_objective(noise="mixed", noisy_length=noisy_length)
    batch = random_batch(rows, 64, documents=(40, 20))
    corruption = jax.device_get(objective.corrupt(example_keys(jax.random.key(3), rows), batch))
    level_BN = corruption.noise_level_BM[:, ::C]
    N = level_BN.shape[1]
    assert N == (noisy_length or 64) // C and (corruption.noise_level_BM > 0).all()
    np.testing.assert_array_equal(corruption.noise_level_BM, np.repeat(level_BN, C, axis=1))
    np.testing.assert_array_equal(np.sort(np.floor(level_BN * N), axis=1), np.tile(np.arange(N), (rows, 1)))
    assert len(np.unique(np.argsort(level_BN, axis=1), axis=0)) > rows / 2  # in an order of each row's own
    tokens_BM = np.asarray(corruption.copied(batch["tokens"]))
    learnable_BM = np.asarray(corruption.copied(batch["loss_mask"] > 0))
    assert not corruption.masked_BM[~learnable_BM].any()
    np.testing.assert_array_equal(corruption.noisy_BM[~corruption.masked_BM], tokens_BM[~corruption.masked_BM])
    phi_BM = np.pi / 2 * corruption.noise_level_BM
    hidden_BM = corruption.noisy_BM == MASK_ID
    assert corruption.masked_BM[hidden_BM].all()
    for found_BM, p_BM in ((hidden_BM, 1 - np.cos(phi_BM)), (corruption.masked_BM, np.sin(phi_BM))):
        for low in (0.0, 0.25, 0.5, 0.75):
            bin_BM = learnable_BM & (low <= corruption.noise_level_BM) & (corruption.noise_level_BM < low + 0.25)
            p, n = p_BM[bin_BM], bin_BM.sum()
            assert abs(found_BM[bin_BM].sum() - p.sum()) < 4 * np.sqrt((p * (1 - p)).sum()) + 3e-3 * n
    others = corruption.noisy_BM[corruption.masked_BM & ~hidden_BM]
    assert len(np.unique(others)) == 96  # every token but the mask
