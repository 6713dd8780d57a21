"""The exact split in plain JAX, for short rows: what a pattern forbids is cut off in chunks, never formed and masked.

Shapes: B batch, T query, S key, L length, M noisy columns, C block length. Masks are worked out here, once.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from edlm_jax.attention.pattern import BlockCausal, Causal, CleanContext, Sight, same_segment, unbounded
from edlm_jax.attention.reference import attend_dense, combine, partial_attention

_CHUNK = 128  # queries per tile of the triangular split; a choice, other sizes are not yet measured


class _Part(NamedTuple):
    """Keys that a chunk of queries meets, and who of them sees whom; in blocks of C, each of a chunk's own alone."""

    keys: slice
    mask: jax.Array
    blocks: int | None = None

    def attend(self, q_BTNH, k_BSKH, v_BSKH):
        """Before normalisation, see `partial_attention`."""
        arrays = q_BTNH, *(x[:, self.keys].astype(q_BTNH.dtype) for x in (k_BSKH, v_BSKH))
        if self.blocks is None:
            return partial_attention(*arrays, self.mask)
        (B, T), C = q_BTNH.shape[:2], self.blocks
        parts = partial_attention(*(_fold(x, C) for x in arrays), self.mask)

        def unfold(x):
            x = jnp.moveaxis(x.reshape(B, -1, *x.shape[1:]), 1, 3)  # B, K, G, blocks, C, ...
            return x.reshape(*x.shape[:3], T + -T % C, x.shape[-1])[:, :, :, :T]

        return jax.tree.map(unfold, parts)


_Chunk = tuple[slice, list[_Part]]  # queries, and the groups of keys that they meet under one softmax


def plan_split(sight: Sight):
    """`attend(q, k, v)` by chunks of queries; of other patterns than triangles and two streams, the dense reference."""
    pattern, segments = sight.pattern, (sight.q_segments_BT, sight.k_segments_BS)
    kind = unbounded(pattern)[0] if sight.seen_TS is None else None  # what a step chooses no chunk knows of
    if isinstance(kind, CleanContext):
        chunks = _clean_context(sight)
    elif isinstance(kind, Causal | BlockCausal) and sight.q_len == sight.k_len:
        chunks = _triangle(pattern, 0, sight.k_len, *segments)
    else:
        documents = dict(q_segments_BT=segments[0], k_segments_BS=segments[1])
        return partial(attend_dense, pattern=pattern, seen_TS=sight.seen_TS, **documents)

    def attend(q_BTNH, k_BSKH, v_BSKH):
        # What many chunks send back to a key is added up where it is float32.
        outs, (k32_BSKH, v32_BSKH) = [], (x.astype(jnp.float32) for x in (k_BSKH, v_BSKH))
        for queries, parts in chunks:
            q = q_BTNH[:, queries]
            outs.append(combine([part.attend(q, k32_BSKH, v32_BSKH) for part in parts], q))
        return checkpoint_name(jnp.concatenate(outs, axis=1), "attention")

    return attend


def _triangle(pattern, first, length, q_segments_BT, k_segments_BT) -> list[_Chunk]:
    """Causal and block-causal, on the columns from `first` on: each chunk meets the keys up to its own end, no later.

    Under a window it meets none that is too early either. Segments are those of these columns alone.
    """
    kind, window = unbounded(pattern)
    C = kind.block_length if isinstance(kind, BlockCausal) else 1
    chunks = []
    for start, stop in _cut(length, C):
        near = _nearest(start, window)
        mask_BTS = jnp.asarray(pattern.allowed(np.arange(start, stop)[:, None], np.arange(near, stop)[None]))[None]
        if q_segments_BT is not None:
            mask_BTS = mask_BTS & same_segment(q_segments_BT[:, start:stop], k_segments_BT[:, near:stop])
        part = _Part(slice(first + near, first + stop), mask_BTS)
        chunks.append((slice(first + start, first + stop), [part]))
    return chunks


def _clean_context(sight: Sight) -> list[_Chunk]:
    """Clean on clean; noisy on earlier clean blocks and in its own group. Queries may be the noisy stream alone."""
    (pattern, window), copies_BM = unbounded(sight.pattern), sight.copies_BM
    L, M, span = pattern.length, pattern.noisy_columns, pattern.span
    packed = sight.q_segments_BT is not None
    noisy_BM, clean_BL = (sight.q_segments_BT[:, :M], sight.k_segments_BS[:, M:]) if packed else (None, None)
    chunks = []
    for start, stop in _cut(M, span):
        parts = [_own_groups(pattern.noisy_pattern.within(window), span, noisy_BM, sight.batch, start, stop)]
        # Static where it can be: clean keys that nobody in this chunk sees are then left out.
        columns_1T = np.arange(start, stop)[None]
        copies_BT = columns_1T % L if copies_BM is None else copies_BM[:, start:stop]
        first_BT = pattern.first(columns_1T, copies_BT)
        seen = int(first_BT.max()) if copies_BM is None else L - span
        near = _nearest(int(copies_BT.min()), window) if copies_BM is None else 0
        if seen > near:
            columns_11S = np.arange(near, seen)[None, None]
            mask_BTS = jnp.asarray(columns_11S < first_BT[:, :, None])
            if window is not None:
                mask_BTS = mask_BTS & (copies_BT[:, :, None] - columns_11S < window)
            if packed:
                mask_BTS = mask_BTS & same_segment(noisy_BM[:, start:stop], clean_BL[:, near:seen])
            parts.append(_Part(slice(M + near, M + seen), mask_BTS))
        chunks.append((slice(start, stop), parts))
    if sight.q_len > M:
        chunks += _triangle(pattern.clean_pattern.within(window), M, L, clean_BL, clean_BL)
    return chunks


def _own_groups(pattern, C, segments_BM, batch, start, stop) -> _Part:
    """Attention inside each noisy group, here of C columns: groups become rows of the batch; a short one is padded."""
    segments_BT = jnp.zeros((batch, stop - start), jnp.int32) if segments_BM is None else segments_BM[:, start:stop]
    folded = _fold(segments_BT, C)
    return _Part(slice(start, stop), same_segment(folded, folded) & jnp.asarray(pattern.dense(C, C))[None], C)


def _fold(x, C):
    B, T = x.shape[:2]
    x = jnp.pad(x, ((0, 0), (0, -T % C)) + ((0, 0),) * (x.ndim - 2), constant_values=-1 if x.ndim == 2 else 0)
    return x.reshape(B * (T + -T % C) // C, C, *x.shape[2:])


def _nearest(column, window):
    """The first column that some query from `column` on may see."""
    return 0 if window is None else max(column - window + 1, 0)


def _cut(length, block_length):
    """(start, stop) of the query chunks: whole blocks, about `_CHUNK` long."""
    step = -(-_CHUNK // block_length) * block_length
    return [(start, min(start + step, length)) for start in range(0, length, step)]
