"""The reference that every fast path must equal, attention over a cache, and the softmax that both are made of.

Shapes: B batch, T query, S key, N query heads, K key heads (kept grouped: N = K * G), H head size. Scores and softmax
are float32.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from edlm_jax.attention.pattern import same_segment
from edlm_jax.attention.tiled import NEVER

_SPAN = 2048  # columns of a cache whose scores exist at once; a choice, not yet measured on a GPU or TPU


def attend_dense(q_BTNH, k_BSKH, v_BSKH, *, pattern, q_segments_BT=None, k_segments_BS=None, seen_TS=None):
    """The reference: forms the whole T x S score matrix and the whole mask."""
    mask_BTS = jnp.asarray(pattern.dense(q_BTNH.shape[1], k_BSKH.shape[1]))[None]
    if seen_TS is not None:
        mask_BTS = mask_BTS & seen_TS[None]
    if q_segments_BT is not None:
        mask_BTS = mask_BTS & same_segment(q_segments_BT, k_segments_BS)
    return combine([partial_attention(q_BTNH, k_BSKH, v_BSKH, mask_BTS)], q_BTNH)


def attend_cached(
    q_BTNH: Float[Array, "B T N H"],
    k_BKSH: Float[Array, "B K S H"],
    v_BKSH: Float[Array, "B K S H"],
    mask_BTS: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    """Attention over a cache, whose heads lie in front of its columns; `mask_BTS` says which hold what is seen.

    Of a long cache so many columns at a time, up to the last that anyone sees: scores of all of it never exist, and
    what is not filled yet is not read.
    """
    S = mask_BTS.shape[2]
    if S <= _SPAN:
        return combine([partial_heads_first(q_BTNH, k_BKSH, v_BKSH, mask_BTS)], q_BTNH)

    def span(index):
        first = jnp.minimum(index * _SPAN, S - _SPAN)  # the last one begins earlier, among columns that were read
        k, v, mask = (jax.lax.dynamic_slice_in_dim(x, first, _SPAN, axis=2) for x in (k_BKSH, v_BKSH, mask_BTS))
        return partial_heads_first(q_BTNH, k, v, mask & (first + jnp.arange(_SPAN) >= index * _SPAN)[None, None])

    last = jnp.max(jnp.where(mask_BTS.any(axis=(0, 1)), jnp.arange(S), 0))
    found = jax.lax.fori_loop(1, last // _SPAN + 1, lambda index, found: merge([found, span(index)]), span(0))
    return combine([found], q_BTNH)


def partial_attention(q_BTNH, k_BSKH, v_BSKH, mask_BTS):
    """Attention over one group of keys before normalisation: (sum of weighted values, sum of weights, top score).

    Heads go in front of columns first: the products are then plain batched matrix products, three times faster on CPU.
    """
    return partial_heads_first(q_BTNH, k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2), mask_BTS)


def partial_heads_first(q_BTNH, k_BKSH, v_BKSH, mask_BTS):
    """`partial_attention` of keys and values whose heads lie in front of their columns already."""
    B, T, N, H = q_BTNH.shape
    K, S = k_BKSH.shape[1:3]
    G = N // K
    q_BKRH = (q_BTNH * H**-0.5).reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, H)
    scores = jnp.einsum("BKRH,BKSH->BKRS", q_BKRH, k_BKSH, preferred_element_type=jnp.float32).reshape(B, K, G, T, S)
    if mask_BTS is not None:
        scores = jnp.where(mask_BTS[:, None, None], scores, NEVER)
    top_BKGT1 = jax.lax.stop_gradient(scores.max(-1, keepdims=True))  # cancels in `combine`: no gradient to carry
    weights = jnp.exp(scores - top_BKGT1)
    w_BKRS = weights.reshape(B, K, G * T, S).astype(v_BKSH.dtype)
    out_BKRH = jnp.einsum("BKRS,BKSH->BKRH", w_BKRS, v_BKSH, preferred_element_type=jnp.float32)
    return out_BKRH.reshape(B, K, G, T, H), weights.sum(-1, keepdims=True), top_BKGT1


def merge(parts):
    """The partial attention over all of the parts' keys, by log-sum-exp."""
    top_BKGT1 = jnp.max(jnp.stack([top for _, _, top in parts]), axis=0)
    scales = [jnp.exp(top - top_BKGT1) for _, _, top in parts]
    out_BKGTH = sum(out * scale for (out, _, _), scale in zip(parts, scales, strict=True))
    total_BKGT1 = sum(total * scale for (_, total, _), scale in zip(parts, scales, strict=True))
    return out_BKGTH, total_BKGT1, top_BKGT1


def combine(parts, q_BTNH):
    """Merges partial attentions and normalises."""
    out_BKGTH, total_BKGT1, _ = merge(parts)
    out_BTKGH = jnp.moveaxis(out_BKGTH / total_BKGT1, 3, 1)
    return out_BTKGH.astype(q_BTNH.dtype).reshape(q_BTNH.shape)
