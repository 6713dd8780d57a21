"""Losses against sums written out in numpy."""

import jax.numpy as jnp
import numpy as np

from edlm_jax.diffusion import diffusion_loss
from edlm_jax.diffusion.streams import next_token_targets, shift_right
from tests.seeds import fresh_rng


def log_softmax(logits):
    logits = logits.astype(np.float64)
    return (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )


def test_diffusion_loss_is_ce_over_t_at_masked_positions():
    rng = fresh_rng()
    B, L, V = 3, 7, 11
    logits, targets = rng.normal(size=(B, L, V)) * 3, rng.integers(0, V, (B, L))
    masked, level = rng.random((B, L)) < 0.5, rng.uniform(0.05, 1, (B, L))
    total, weight = diffusion_loss(jnp.asarray(logits, jnp.float32), targets, masked, jnp.asarray(level, jnp.float32))
    log_p = log_softmax(logits)
    expected = sum(-log_p[b, i, targets[b, i]] / level[b, i] for b in range(B) for i in range(L) if masked[b, i])
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert weight == masked.sum()


def test_nothing_masked_is_no_loss_and_no_weight():
    total, weight = diffusion_loss(
        jnp.ones((1, 2, 3)), jnp.zeros((1, 2), int), jnp.zeros((1, 2), bool), jnp.ones((1, 2))
    )
    assert (total, weight) == (0, 0)


def test_next_token_targets_stop_at_documents_prompts_and_the_end():
    tokens = jnp.array([[5, 6, 7, 8, 9, 0]])
    segments = jnp.array([[1, 1, 1, 2, 2, 0]])
    loss_mask = jnp.array([[0, 0, 1, 1, 1, 0]])
    targets, mask = next_token_targets(tokens, loss_mask, segments)
    assert targets[0, :5].tolist() == [6, 7, 8, 9, 0]
    assert mask[0].tolist() == [False, True, False, True, False, False]
    whole = next_token_targets(tokens, jnp.ones_like(tokens), jnp.ones_like(tokens))[1]
    assert whole[0].tolist() == [True] * 5 + [False]  # the last column has no successor, not the first column


def test_shift_right_reads_the_logit_before():
    logits = jnp.arange(4.0).reshape(1, 4, 1)
    assert shift_right(logits)[0, :, 0].tolist() == [0, 0, 1, 2]
