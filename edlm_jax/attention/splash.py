"""Attention on TPU: JAX's splash kernels, forward and backward, over the tiles in which a pattern allows anything.

The mask is lowered tile by tile from `pattern.allowed`: what a tile allows is nothing (skipped), all, or one of a few
patterns, each stored once (three of 512 x 512 for `CleanContext`, whatever the length). Computing the mask inside the
kernel instead, as splash also can, takes 74 % more instructions for blocks of a power of two and 85 % with division,
against 4 % for reading tiles (the TPU v5p compiler's schedules of all three kernels, tiles of 512); and it cannot ask
numpy, so it would need a second form of every pattern.
"""

import math
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from edlm_jax.attention.pattern import Pattern, Sight, Tiles
from edlm_jax.attention.tiled import pad
from edlm_jax.errors import InputError
from edlm_jax.parallel.sharding import by_rows_and_heads, head_axes

_LANES = 128  # columns come in multiples of the vector unit's width
TILES = Tiles(512, 512)  # the largest: a length that it does not divide gets smaller ones


def plan_splash(sight: Sight, heads: tuple[int, int], tiles: Tiles | None = None, interpret: bool = False):
    """`attend(q, k, v)` in tiles, for T <= S of any size: what is no multiple of 128 is padded, and nobody sees it.

    On a mesh each device attends for its own rows and heads, as far as these divide evenly; axes that do not divide
    them repeat the work, and `context` does. `interpret` runs the kernels' Python on any machine, slowly.
    """
    tiles = tiles or TILES
    if any(size % _LANES for size in tiles):
        raise InputError(f"tiles of attention on TPU are multiples of {_LANES}, not {tuple(tiles)}")
    kernel = make_kernel(sight.pattern, sight.q_len, sight.k_len, local_heads(*heads), tiles, interpret)
    segments = sight.q_segments_BT, sight.k_segments_BS
    return lambda q, k, v: by_rows_and_heads(partial(run_kernel, kernel=kernel), q, k, v, segments)


def local_heads(num_heads: int, kv_heads: int) -> int:
    """Query heads of one device of the mesh that is set."""
    axes = head_axes(kv_heads)
    return num_heads // math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in axes)


def count_tiles(pattern: Pattern, q_len: int, k_len: int, tiles: Tiles) -> tuple[int, int]:
    """(tiles that the forward kernel computes, tiles in all) of one head of one row, over all of its pieces."""
    block_mask = make_kernel(pattern, q_len, k_len, 1, tiles).fwd_mask_info.block_mask
    total = math.prod(_TileMask(pattern, q_len, k_len).shape) // math.prod(tile_sizes(pattern, tiles, q_len, k_len))
    return (total if block_mask is None else int(np.sum(np.asarray(block_mask) > 0))), total


@dataclass(frozen=True)
class _TileMask(splash.Mask):
    """A pattern as splash reads it: one tile at a time. Two that are equal share what splash works out from them."""

    pattern: Pattern
    q_len: int
    k_len: int

    @property
    def shape(self):
        return len(self._places), _padded(self.k_len)

    @cached_property
    def _places(self):
        """int32: 0..q_len - 1, each piece padded with its last, since a softmax over nothing is NaN."""
        pieces, size = self.pattern.pieces, self.q_len // self.pattern.pieces
        places_PX = np.minimum(np.arange(_padded(size)), size - 1) + size * np.arange(pieces)[:, None]
        return places_PX.astype(np.int32).reshape(-1)

    def __getitem__(self, tile):  # (slice of queries, slice of keys), both with their ends
        q, k = self._places[tile[0]], np.arange(tile[1].start, tile[1].stop, dtype=np.int32)
        seen = np.minimum(k, self.k_len - 1)
        return np.asarray(self.pattern.allowed(q[:, None], seen[None])) & (k < self.k_len)[None]


def run_kernel(q_BTNH, k_BSKH, v_BSKH, segments, kernel):
    """One device's attention; `segments` are (those of the queries, those of the keys), or None twice."""
    T, H = q_BTNH.shape[1], q_BTNH.shape[3]
    q_BNTH, k_BKSH, v_BKSH = (pad(x.swapaxes(1, 2), 2, _LANES) for x in (q_BTNH * H**-0.5, k_BSKH, v_BSKH))
    (q_BT, k_BS), ids = segments, None
    if q_BT is not None:
        ids = splash.SegmentIds(pad(q_BT, 1, _LANES, mode="edge"), pad(k_BS, 1, _LANES))
    out_BNTH = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, segment_ids=ids))(q_BNTH, k_BKSH, v_BKSH, ids)
    return out_BNTH[:, :, :T].swapaxes(1, 2)


def make_kernel(pattern, q_len, k_len, heads, tiles, interpret=False):
    """Splash's kernel of a pattern; of `InPieces` its mask's parts are for the devices of an axis, in their order."""
    q, k = tile_sizes(pattern, tiles, q_len, k_len)
    of_queries = dict.fromkeys(("block_q", "block_q_dkv", "block_q_dq"), q)
    of_keys = ("block_kv", "block_kv_compute", "block_kv_dkv", "block_kv_dkv_compute", "block_kv_dq")
    sizes = splash.BlockSizes(**of_queries, **dict.fromkeys(of_keys, k))
    return splash.make_splash_mha(
        mask=splash.MultiHeadMask([_TileMask(pattern, q_len, k_len)] * heads),
        block_sizes=sizes,
        residual_checkpoint_name="attention",  # output and log-sum-exp: kept where a remat policy keeps attention
        head_shards=1,
        q_seq_shards=pattern.pieces,
        interpret=interpret,
    )


def has_partial_tiles(pattern, q_len, k_len, tiles) -> bool:
    """Is a tile seen in part? Splash cannot split over devices a mask whose tiles are all or nothing (jax 0.10)."""
    mask, (q, k) = _TileMask(pattern, q_len, k_len), tile_sizes(pattern, tiles, q_len, k_len)
    rows, columns = mask.shape
    bands = (mask[start : start + q, 0:columns].reshape(q, -1, k) for start in range(0, rows, q))
    return any((band.any((0, 2)) & ~band.all((0, 2))).any() for band in bands)


def tile_sizes(pattern: Pattern, tiles: Tiles, q_len: int, k_len: int) -> tuple[int, int]:
    """(queries, keys) of a tile. In pieces, it lies within one chunk where chunks are multiples of 128."""
    chunk = pattern.chunk if pattern.pieces > 1 and pattern.chunk % _LANES == 0 else None
    return _tile(chunk or q_len // pattern.pieces, tiles.queries), _tile(chunk or k_len, tiles.keys)


def _padded(length: int) -> int:
    return -(-length // _LANES) * _LANES


def _tile(length: int, most: int) -> int:
    """The largest multiple of 128 up to `most` that divides the padded length."""
    padded = _padded(length)
    return max(size for size in range(_LANES, max(most, _LANES) + 1, _LANES) if padded % size == 0)
