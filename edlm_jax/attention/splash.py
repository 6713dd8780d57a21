"""Attention on TPU: JAX's splash kernels, forward and backward, over the tiles in which a pattern allows anything.

The mask is lowered tile by tile from `pattern.allowed`: what a tile allows is nothing (skipped), all, or one of a few
patterns, each stored once (three of 512 x 512 for `CleanContext`, whatever the length). Computing the mask inside the
kernel instead, as splash also can, takes 74 % more instructions for blocks of a power of two and 85 % with division,
against 4 % for reading tiles (the TPU v5p compiler's schedules of all three kernels, tiles of 512); and it cannot ask
numpy, so it would need a second form of every pattern.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from edlm_jax.attention.pattern import Pattern

_LANES = 128  # columns come in multiples of the vector unit's width
_ROW_AXES, _HEAD_AXIS = ("data", "fsdp"), "tensor"  # of the mesh, see models/sharding.py


@dataclass(frozen=True)
class Tiles:
    """The largest tile of scores that is computed at once; a length that it does not divide gets a smaller one.

    Fewest tiles are visited where whole blocks fill a tile.
    """

    queries: int = 512
    keys: int = 512


def platform() -> str:
    """What is being traced for: the devices of the mesh that is set, which need not be this machine's, or jax's own."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()


def attend_splash(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    *,
    pattern: Pattern,
    q_segments_BT: Int[Array, "B T"] | None = None,
    k_segments_BS: Int[Array, "B S"] | None = None,
    tiles: Tiles = Tiles(),  # noqa: B008 (frozen)
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """`attend` in tiles, for T <= S of any size: what is no multiple of 128 is padded with columns that nobody sees.

    On a mesh each device attends for its own rows and heads, as far as these divide evenly; axes that do not divide
    them, and `context`, repeat the work. `interpret` runs the kernels' Python on any machine, slowly.
    """
    segments = None if q_segments_BT is None else splash.SegmentIds(q_segments_BT, k_segments_BS)
    attend_local = partial(_attend_local, pattern=pattern, tiles=tiles, interpret=interpret)
    return on_mesh(attend_local, q_BTNH, k_BSKH, v_BSKH, segments)


def on_mesh(attend_local, q_BTNH, k_BSKH, v_BSKH, by_row):
    """`attend_local(q, k, v, by_row)` on each device for its own rows and heads, as far as these divide evenly.

    A compiler cannot split a kernel by itself. `by_row` is a tree of int32[B, columns].
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return attend_local(q_BTNH, k_BSKH, v_BSKH, by_row)
    rows = _axes_that_divide(mesh, _ROW_AXES, q_BTNH.shape[0])
    heads = _axes_that_divide(mesh, (_HEAD_AXIS,), k_BSKH.shape[2])
    x_spec = PartitionSpec(rows, None, heads, None)
    in_specs = (x_spec, x_spec, x_spec, PartitionSpec(rows, None))
    # A kernel's outputs say nothing of how they vary over the mesh, so that cannot be checked.
    sharded = jax.shard_map(attend_local, in_specs=in_specs, out_specs=x_spec, check_vma=False)
    return sharded(q_BTNH, k_BSKH, v_BSKH, by_row)


def count_tiles(pattern: Pattern, q_len: int, k_len: int, tiles: Tiles = Tiles()) -> tuple[int, int]:  # noqa: B008
    """(tiles that the forward kernel computes, tiles in all) of one head of one row."""
    block_mask = _kernel(pattern, q_len, k_len, 1, tiles).fwd_mask_info.block_mask
    sizes = _tile(q_len, tiles.queries), _tile(k_len, tiles.keys)
    total = (_padded(q_len) // sizes[0]) * (_padded(k_len) // sizes[1])
    return (total if block_mask is None else int(np.sum(np.asarray(block_mask) > 0))), total


@dataclass(frozen=True)
class _TileMask(splash.Mask):
    """A pattern as splash reads it: one tile at a time. Two that are equal share what splash works out from them."""

    pattern: Pattern
    q_len: int
    k_len: int

    @property
    def shape(self):
        return _padded(self.q_len), _padded(self.k_len)

    def __getitem__(self, tile):
        q, k = (np.arange(part.start, part.stop, dtype=np.int32) for part in tile)
        q = np.minimum(q, self.q_len - 1)[:, None]  # padding is like the last query: a softmax over nothing is NaN
        return np.asarray(self.pattern.allowed(q, k[None])) & (k < self.k_len)[None]


def _attend_local(q_BTNH, k_BSKH, v_BSKH, segments, *, pattern, tiles, interpret):
    B, T, N, H = q_BTNH.shape
    kernel = _kernel(pattern, T, k_BSKH.shape[1], N, tiles, interpret)
    q_BNTH, k_BKSH, v_BKSH = (_pad(x.swapaxes(1, 2), axis=2) for x in (q_BTNH * H**-0.5, k_BSKH, v_BSKH))
    if segments is not None:
        segments = splash.SegmentIds(_pad(segments.q, axis=1, mode="edge"), _pad(segments.kv, axis=1))
    out_BNTH = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, segment_ids=ids))(q_BNTH, k_BKSH, v_BKSH, segments)
    return out_BNTH[:, :, :T].swapaxes(1, 2)


def _kernel(pattern, q_len, k_len, heads, tiles, interpret=False):
    q, k = _tile(q_len, tiles.queries), _tile(k_len, tiles.keys)
    sizes = splash.BlockSizes(
        block_q=q,
        block_kv=k,
        block_kv_compute=k,
        block_q_dkv=q,
        block_kv_dkv=k,
        block_kv_dkv_compute=k,
        block_q_dq=q,
        block_kv_dq=k,
    )
    return splash.make_splash_mha_single_device(
        mask=splash.MultiHeadMask([_TileMask(pattern, q_len, k_len)] * heads),
        block_sizes=sizes,
        residual_checkpoint_name="attention",  # output and log-sum-exp: kept where a remat policy keeps attention
        interpret=interpret,
    )


def _padded(length: int) -> int:
    return -(-length // _LANES) * _LANES


def _tile(length: int, most: int) -> int:
    """The largest multiple of 128 up to `most` that divides the padded length."""
    padded = _padded(length)
    return max(size for size in range(_LANES, max(most, _LANES) + 1, _LANES) if padded % size == 0)


def _pad(x, *, axis, mode="constant"):
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, _padded(x.shape[axis]) - x.shape[axis])
    return jnp.pad(x, widths, mode=mode)


def _axes_that_divide(mesh, axes: tuple[str, ...], size: int) -> tuple[str, ...]:
    axes = tuple(axis for axis in axes if axis in mesh.axis_names)
    return axes if size % int(np.prod([mesh.shape[axis] for axis in axes])) == 0 else ()
