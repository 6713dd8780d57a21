"""Decoding's side of the model equals the model: fused projections, a head of its own, columns written as they come."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from edlm_jax import load_pretrained
from edlm_jax.models.cache import DecodingWeights, KVCache, Rotary, forward_cached
from tests.seeds import fresh_rng

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))


@pytest.mark.parametrize("case", CASES)
def test_column_by_column_equals_the_whole_row(case):
    model = load_pretrained(GOLDEN / case, "float32")
    for param in vars(model.layers).values():  # biases and norms that tell their places apart
        if hasattr(param, "shape"):
            param[...] = param[...] + 0.05 * fresh_rng().normal(size=param.shape)
    spec, weights = model.spec, DecodingWeights.of(model)
    B, S = 2, 9
    tokens_BT = fresh_rng().integers(0, spec.vocab_size, (B, S))
    rotary = Rotary.of(spec, S)
    empty = jnp.zeros((B, spec.num_kv_heads, S, spec.head_dim))
    cache = KVCache((empty,) * spec.num_layers, (empty,) * spec.num_layers)
    logits = []
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        columns_T = jnp.arange(start, stop)
        mask_1TS = jnp.arange(S)[None, None] <= columns_T[None, :, None]
        starts = start if start == 4 else jnp.full(B, start)  # one for all rows, or one a row
        x_BTD, cache = forward_cached(
            weights, cache, tokens_BT[:, start:stop], rotary.at(columns_T[None]), starts, mask_1TS
        )
        logits.append(weights.logits(x_BTD))
    np.testing.assert_allclose(jnp.concatenate(logits, axis=1), model(tokens_BT), atol=2e-5, rtol=2e-4)
