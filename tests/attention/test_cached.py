"""Attention over a long cache, so many columns at a time, against all of them at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edlm_jax.attention import attend_cached, reference
from tests.seeds import fresh_rng


@pytest.mark.parametrize(("span", "filled"), [(8, 37), (8, 16), (8, 3), (36, 37), (64, 37)])
def test_a_cache_in_spans_is_the_cache_at_once(monkeypatch, span, filled):
    rng, B, T, N, K, S, H = fresh_rng(), 2, 3, 4, 2, 37, 8
    q_BTNH, *kv_BKSH = (rng.normal(size=size) for size in ((B, T, N, H), (B, K, S, H), (B, K, S, H)))
    mask_BTS = (rng.random((B, T, S)) < 0.5) & (np.arange(S) < filled)
    mask_BTS[:, :, filled - 1] = mask_BTS[0, :, 0] = True
    whole = attend_cached(q_BTNH, *kv_BKSH, mask_BTS)
    monkeypatch.setattr(reference, "_SPAN", span)
    unread = -(-filled // span) * span
    for x_BKSH in kv_BKSH if unread <= S - span else ():
        x_BKSH[:, :, unread:] = np.nan  # what is not filled yet is not even read
    ours = jax.jit(attend_cached)(q_BTNH, *map(jnp.asarray, kv_BKSH), mask_BTS)
    np.testing.assert_allclose(ours, whole, atol=1e-5)
