"""Own guesses: where they stand, that they are the model's, that no gradient passes them, and the loss over all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edlm_jax.diffusion import example_keys
from tests.training.tiny import MASK_ID, make_objective, random_batch, random_model

L = 32


@pytest.mark.parametrize("alignment", ["same_position", "shifted"])
def test_guesses_are_the_models_and_pass_no_gradient(alignment):
    how = dict(noise="own_guesses", diffusion_weight=0.0, recovery_weight=1.0, alignment=alignment)
    objective, batch = make_objective(**how), random_batch(8, L, documents=(20, 11))
    graphdef, params = nnx.split(random_model(num_hidden_layers=1))
    corruption = jax.jit(lambda: objective.corrupt(example_keys(jax.random.key(4), 8), batch))()
    guessed_BM, masked_BM = np.asarray(corruption.guessed_BM), np.asarray(corruption.masked_BM)
    rows = guessed_BM.any(axis=1)
    assert 0 < rows.sum() < 8
    np.testing.assert_array_equal(guessed_BM, masked_BM & rows[:, None])
    learnable_BL = batch["loss_mask"] > 0
    assert not masked_BM[~learnable_BL].any() and 0.6 < masked_BM[learnable_BL].mean() < 0.9

    @jax.jit
    def run(params):
        model = nnx.merge(graphdef, params)
        inputs = objective.streams(batch, corruption).inputs
        x_BTD = model.hidden(pattern=objective.layout.pattern(L), **inputs)
        logits_BMV = model.logits(objective.streams(batch, corruption).aligned(x_BTD))
        best_BM = jnp.argmax(logits_BMV.at[..., MASK_ID].set(-jnp.inf), axis=-1)
        filled = corruption._replace(noisy_BM=jnp.where(guessed_BM, best_BM, corruption.noisy_BM), guessed_BM=None)
        loss = lambda params, noise: objective.sums(nnx.merge(graphdef, params), batch, noise)["recovery"]["loss"]  # noqa: E731
        ours, expected = (jax.value_and_grad(loss)(params, noise) for noise in (corruption, filled))
        return ours, expected, objective.weights(batch, corruption)["recovery"], filled.noisy_BM

    (ours, grads), (expected, wanted), count, noisy_BM = run(params)
    assert not (np.asarray(noisy_BM)[rows] == MASK_ID).any() and (np.asarray(noisy_BM)[~rows] == MASK_ID).any()
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    first_BL = (batch["positions"] == 0) if alignment == "shifted" else np.zeros((8, L), bool)
    assert count == (learnable_BL & ~first_BL).sum()


def test_rows_may_have_levels_of_their_own():
    """With one level, every token has the same chance; with several a row is hidden more or less as a whole."""
    rows, spread = 300, {}
    for name in ("own_guesses", "own_guesses_spread"):
        objective, batch = make_objective(noise=name, recovery_weight=1.0), random_batch(rows, L, documents=(L,))
        batch["loss_mask"][:] = 1
        corruption = jax.device_get(objective.corrupt(example_keys(jax.random.key(4), rows), batch))
        levels_B, shares_B = corruption.noise_level_BM[:, 0], corruption.masked_BM.mean(axis=1)
        assert abs(shares_B - levels_B).mean() < 0.1 and abs(shares_B.mean() - 0.75) < 0.03
        spread[name] = levels_B.min(), levels_B.max()
    assert spread["own_guesses"] == (0.75, 0.75)
    assert 0.5 <= spread["own_guesses_spread"][0] < 0.52 and 0.98 < spread["own_guesses_spread"][1] < 1
