"""How fast: `attend` lowers a pattern to the cheapest exact computation; `attend_dense` is what all of them must equal.

Shapes: B batch, T query, S key, N query heads, K key heads (kept grouped: N = K * G), H head size, L length, M noisy
columns, C block length. Scores and softmax are float32; every score that a pattern or a document boundary forbids is
never formed or gets `NEVER`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from edlm_jax.attention.context import InPieces, attend_in_pieces
from edlm_jax.attention.intervals import key_runs
from edlm_jax.attention.pattern import BlockCausal, Causal, CleanContext, Pattern, same_segment
from edlm_jax.attention.splash import Tiles, attend_splash
from edlm_jax.attention.tiled import NEVER, attend_tiled
from edlm_jax.attention.triton import attend_triton
from edlm_jax.parallel.devices import platform
from edlm_jax.parallel.per_device import per_device

_CHUNK = 128  # queries per tile of the triangular split; a choice, other sizes are not yet measured
# Rows of up to so many keys take the split there: on a GPU a choice, not yet measured; on two CPU cores tiles are 1.8
# times as fast at 2048 keys with four documents a row, 0.86 with one, and slower at 1024 keys.
_SHORT = {"gpu": 512, "cuda": 512, "cpu": 1024}


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    *,
    pattern: Pattern,
    q_segments_BT: Int[Array, "B T"] | None = None,
    k_segments_BS: Int[Array, "B S"] | None = None,
    copies_BM: Int[Array, "B M"] | None = None,
    tiles: Tiles = Tiles(),  # noqa: B008 (frozen)
) -> Float[Array, "B T N H"]:
    """Scaled dot-product attention under `pattern` and, where segment ids are given, inside each document alone.

    Under `CleanContext`, `copies_BM` says which clean column each noisy one is a copy of, whole blocks at a time.

    On TPU in tiles (`attend_splash`), whatever the shapes, unless the copies are only known inside the step; in tiles
    on GPU (`attend_triton`) and CPU (`attend_tiled`), too, where rows are long; else by the exact split. The result is
    named "attention" for remat policies.
    """
    segments = dict(q_segments_BT=q_segments_BT, k_segments_BS=k_segments_BS)
    long = k_BSKH.shape[1] > _SHORT.get(platform(), np.inf)
    if isinstance(pattern, InPieces):
        return attend_in_pieces(q_BTNH, k_BSKH, v_BSKH, pattern=pattern, copies_BT=copies_BM, tiles=tiles, **segments)
    if platform() == "tpu" and copies_BM is None:
        return attend_splash(q_BTNH, k_BSKH, v_BSKH, pattern=pattern, tiles=tiles, **segments)
    if long:
        in_tiles = _attend_tiled if platform() == "cpu" else attend_triton
        return in_tiles(q_BTNH, k_BSKH, v_BSKH, pattern=pattern, copies_BM=copies_BM, **segments)
    out_BTNH = _attend_split(q_BTNH, k_BSKH, v_BSKH, pattern=pattern, copies_BM=copies_BM, **segments)
    return checkpoint_name(out_BTNH, "attention")


def _attend_tiled(q_BTNH, k_BSKH, v_BSKH, *, pattern, q_segments_BT, k_segments_BS, copies_BM):
    def attend_local(q, k, v, by_row):
        q_ids, k_ids, copies = by_row
        runs_BRT = key_runs(pattern, len(q), np.arange(q.shape[1]), k.shape[1], copies)
        return attend_tiled(q, k, v, runs_BRT, None if q_ids is None else (q_ids, k_ids))

    return per_device(attend_local, q_BTNH, k_BSKH, v_BSKH, (q_segments_BT, k_segments_BS, copies_BM))


def _attend_split(q_BTNH, k_BSKH, v_BSKH, *, pattern, q_segments_BT, k_segments_BS, copies_BM):
    T, S = q_BTNH.shape[1], k_BSKH.shape[1]
    if isinstance(pattern, CleanContext):
        return _clean_context(q_BTNH, k_BSKH, v_BSKH, pattern, q_segments_BT, k_segments_BS, copies_BM)
    if isinstance(pattern, Causal | BlockCausal) and T == S:
        return _lower_triangular(q_BTNH, k_BSKH, v_BSKH, pattern, q_segments_BT, k_segments_BS)
    return attend_dense(
        q_BTNH, k_BSKH, v_BSKH, pattern=pattern, q_segments_BT=q_segments_BT, k_segments_BS=k_segments_BS
    )


def attend_dense(q_BTNH, k_BSKH, v_BSKH, *, pattern, q_segments_BT=None, k_segments_BS=None):
    """The reference: forms the whole T x S score matrix and the whole mask."""
    mask_BTS = jnp.asarray(pattern.dense(q_BTNH.shape[1], k_BSKH.shape[1]))[None]
    if q_segments_BT is not None:
        mask_BTS = mask_BTS & same_segment(q_segments_BT, k_segments_BS)
    return _combine([_partial(q_BTNH, k_BSKH, v_BSKH, mask_BTS)], q_BTNH)


def attend_cached(
    q_BTNH: Float[Array, "B T N H"],
    k_BKSH: Float[Array, "B K S H"],
    v_BKSH: Float[Array, "B K S H"],
    mask_BTS: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    """Attention over a cache, whose heads lie in front of its columns; `mask_BTS` says which hold what is seen."""
    return _combine([_partial_heads_first(q_BTNH, k_BKSH, v_BKSH, mask_BTS)], q_BTNH)


def _lower_triangular(q_BTNH, k_BTKH, v_BTKH, pattern, q_segments_BT, k_segments_BT):
    """Causal and block-causal: each chunk of queries meets the keys up to its own end and no later ones."""
    C = pattern.block_length if isinstance(pattern, BlockCausal) else 1
    outs = []
    for start, stop in _chunks(q_BTNH.shape[1], C):
        mask_BTS = _mask(pattern, (start, stop), stop, q_segments_BT, k_segments_BT)
        q = q_BTNH[:, start:stop]
        outs.append(_combine([_partial(q, k_BTKH[:, :stop], v_BTKH[:, :stop], mask_BTS)], q))
    return jnp.concatenate(outs, axis=1)


def _clean_context(q_BTNH, k_BTKH, v_BTKH, pattern, q_segments_BT, k_segments_BT, copies_BM):
    """The exact split: clean on clean; noisy on earlier clean blocks and on its own block, under one softmax.

    Queries are [noisy | clean], or the noisy stream alone.
    """
    L, M, C = pattern.length, pattern.noisy_columns, pattern.block_length
    packed = q_segments_BT is not None
    noisy_BM, clean_BL = (q_segments_BT[:, :M], k_segments_BT[:, M:]) if packed else (None, None)
    k_noisy, v_noisy, k_clean, v_clean = k_BTKH[:, :M], v_BTKH[:, :M], k_BTKH[:, M:], v_BTKH[:, M:]
    outs = []
    for start, stop in _chunks(M, C):
        q = q_BTNH[:, start:stop]
        parts = [_own_blocks(q, k_noisy[:, start:stop], v_noisy[:, start:stop], C, noisy_BM, start)]
        # Static where it can be: clean keys that nobody in this chunk sees are then left out.
        copies_BT = np.arange(start, stop)[None] % L if copies_BM is None else copies_BM[:, start:stop]
        seen = (int(copies_BT.max()) if copies_BM is None else L - 1) // C * C
        if seen:
            mask_BTS = jnp.asarray(np.arange(seen)[None, None] // C < copies_BT[:, :, None] // C)
            if packed:
                mask_BTS = mask_BTS & same_segment(noisy_BM[:, start:stop], clean_BL[:, :seen])
            parts.append(_partial(q, k_clean[:, :seen], v_clean[:, :seen], mask_BTS))
        outs.append(_combine(parts, q))
    if q_BTNH.shape[1] > M:
        outs.append(_lower_triangular(q_BTNH[:, M:], k_clean, v_clean, pattern.clean_pattern, clean_BL, clean_BL))
    return jnp.concatenate(outs, axis=1)


def _own_blocks(q_BTNH, k_BTKH, v_BTKH, C, segments_BL, start):
    """Dense C x C attention inside each noisy block: blocks become rows of the batch; a short last block is padded."""
    B, T = q_BTNH.shape[:2]
    short = -T % C

    def fold(x):
        x = jnp.pad(x, ((0, 0), (0, short)) + ((0, 0),) * (x.ndim - 2), constant_values=-1 if x.ndim == 2 else 0)
        return x.reshape(B * (T + short) // C, C, *x.shape[2:])

    segments_BT = jnp.zeros((B, T), jnp.int32) if segments_BL is None else segments_BL[:, start : start + T]
    mask_BTS = same_segment(fold(segments_BT), fold(segments_BT)) if short or segments_BL is not None else None

    def unfold(x):
        x = jnp.moveaxis(x.reshape(B, -1, *x.shape[1:]), 1, 3)  # B, K, G, blocks, C, ...
        return x.reshape(*x.shape[:3], T + short, x.shape[-1])[:, :, :, :T]

    return jax.tree.map(unfold, _partial(fold(q_BTNH), fold(k_BTKH), fold(v_BTKH), mask_BTS))


def _partial(q_BTNH, k_BSKH, v_BSKH, mask_BTS):
    """Attention over one group of keys before normalisation: (sum of weighted values, sum of weights, top score).

    Heads go in front of columns first: the products are then plain batched matrix products, three times faster on CPU.
    """
    return _partial_heads_first(q_BTNH, k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2), mask_BTS)


def _partial_heads_first(q_BTNH, k_BKSH, v_BKSH, mask_BTS):
    B, T, N, H = q_BTNH.shape
    K, S = k_BKSH.shape[1:3]
    G = N // K
    q_BKRH = (q_BTNH * H**-0.5).reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, H)
    scores = jnp.einsum("BKRH,BKSH->BKRS", q_BKRH, k_BKSH, preferred_element_type=jnp.float32).reshape(B, K, G, T, S)
    if mask_BTS is not None:
        scores = jnp.where(mask_BTS[:, None, None], scores, NEVER)
    top_BKGT1 = jax.lax.stop_gradient(scores.max(-1, keepdims=True))  # cancels in `_combine`: no gradient to carry
    weights = jnp.exp(scores - top_BKGT1)
    w_BKRS = weights.reshape(B, K, G * T, S).astype(v_BKSH.dtype)
    out_BKRH = jnp.einsum("BKRS,BKSH->BKRH", w_BKRS, v_BKSH, preferred_element_type=jnp.float32)
    return out_BKRH.reshape(B, K, G, T, H), weights.sum(-1, keepdims=True), top_BKGT1


def _combine(parts, q_BTNH):
    """Merges partial attentions by log-sum-exp and normalises."""
    top_BKGT1 = jnp.max(jnp.stack([top for _, _, top in parts]), axis=0)
    scales = [jnp.exp(top - top_BKGT1) for _, _, top in parts]
    out_BKGTH = sum(out * scale for (out, _, _), scale in zip(parts, scales, strict=True))
    total_BKGT1 = sum(total * scale for (_, total, _), scale in zip(parts, scales, strict=True))
    out_BTKGH = jnp.moveaxis(out_BKGTH / total_BKGT1, 3, 1)
    return out_BTKGH.astype(q_BTNH.dtype).reshape(q_BTNH.shape)


def _chunks(length, block_length):
    """(start, stop) of the query chunks: whole blocks, about `_CHUNK` long."""
    step = -(-_CHUNK // block_length) * block_length
    return [(start, min(start + step, length)) for start in range(0, length, step)]


def _mask(pattern, queries, num_keys, q_segments_BT, k_segments_BS):
    """bool[B or 1, T, S]: the pattern for query columns start..stop and the first `num_keys` key columns."""
    q = np.arange(*queries)[:, None]
    mask_BTS = jnp.asarray(pattern.allowed(q, np.arange(num_keys)[None]))[None]
    if q_segments_BT is None:
        return mask_BTS
    return mask_BTS & same_segment(q_segments_BT[:, queries[0] : queries[1]], k_segments_BS[:, :num_keys])
