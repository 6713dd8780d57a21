"""Uniform random tokens: where, and from which tokens."""

import jax
import numpy as np

from edlm_jax.diffusion import example_keys
from tests.training.tiny import HF_CONFIG, MASK_ID, make_objective, random_batch


def test_every_token_with_loss_becomes_any_but_the_mask():
    rows, V = 60, HF_CONFIG["vocab_size"]
    objective, batch = make_objective(noise="uniform_tokens"), random_batch(rows, 64, documents=(40, 20))
    corruption = jax.device_get(objective.corrupt(example_keys(jax.random.key(2), rows), batch))
    learnable = batch["loss_mask"] > 0
    np.testing.assert_array_equal(corruption.masked_BM, learnable)
    np.testing.assert_array_equal(corruption.noisy_BM[~learnable], batch["tokens"][~learnable])
    assert (corruption.noise_level_BM == 1).all()
    counts = np.bincount(corruption.noisy_BM[learnable], minlength=V)
    assert len(counts) == V and counts[MASK_ID] == 0
    others = np.delete(counts, MASK_ID)
    mean = others.mean()
    assert others.min() > 0 and abs(others - mean).max() < 6 * mean**0.5
    assert len(np.unique(corruption.noisy_BM, axis=0)) == rows
