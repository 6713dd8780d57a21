"""Long rows over several devices: the mesh's `context` axis splits queries, and keys and values are gathered.

Grouped key heads are small beside the scores, so gathering them costs little and any pattern stays exact; what must be
chosen is which columns a device holds. Cut as it is, a row [noisy | clean] would leave one device all that is noisy and
another all that is clean, and the last columns of a triangle see the most. The model puts its columns in the order of
`InPieces` once, before the first layer, and back after the last, because terms find columns by their numbers. (At 8
layers with 4 devices that is 3 % of the bytes of a step's collectives.)
"""

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from edlm_jax.attention import splash, tiled, triton
from edlm_jax.attention.intervals import key_runs
from edlm_jax.attention.pattern import BlockCausal, CleanContext, Pattern, Sight, Tiles, unbounded
from edlm_jax.attention.refusal import kernels_for
from edlm_jax.attention.splash import has_partial_tiles, local_heads, make_kernel, run_kernel
from edlm_jax.parallel.sharding import TRAINING, head_axes, row_axes

(CONTEXT_AXIS,) = TRAINING.L
Maybe = TypeVar("Maybe", jax.Array, None, jax.Array | None)


@dataclass(frozen=True)
class InPieces(Pattern):
    """`pattern` over a row of `length` columns that lie in `pieces` equal pieces, one for each device of an axis.

    Each stream is cut into 2X chunks of whole blocks, and piece i holds chunks i and 2X - 1 - i: what a triangle shows
    the one more it shows the other less. Where a piece has an odd number of blocks, the first chunk is a block longer.

        X = 2, a block each      noisy       clean
                                 0 1 2 3  |  0 1 2 3     ->     0 3 | 0 3     1 2 | 1 2
                                                                 piece 0       piece 1

    Indices of `allowed` are places in the new order; `queries`, if given, leaves of the queries those of that many
    first columns of the row (the last layer's noisy ones), each in its piece.
    """

    pattern: Pattern
    length: int
    pieces: int
    queries: int | None = None
    whole: int | None = None  # columns that stay together where the pattern does not ask for it

    @classmethod
    def on_mesh(cls, pattern: Pattern, length: int) -> "InPieces":
        """A piece for each device of the context axis; one, the row as it is, where whole blocks do not go round."""
        pieces = jax.sharding.get_abstract_mesh().shape.get(CONTEXT_AXIS, 1)
        streams, C = _streams(pattern, length)
        return cls(pattern, length, 1 if any(size % (pieces * C) for size in streams) else pieces)

    @cached_property
    def order(self) -> np.ndarray:
        """int32[length]: the column of the row that lies in each place."""
        columns, chunks_PX = np.arange(self.length, dtype=np.int32), []
        for size, (front, back) in zip(_streams(self.pattern, self.length)[0], self._chunks, strict=True):
            stream, columns = columns[:size], columns[size:]
            fronts, backs = np.split(stream, [self.pieces * front])
            chunks_PX += [fronts.reshape(self.pieces, front), backs.reshape(self.pieces, back)[::-1]]
        return np.concatenate(chunks_PX, axis=1).reshape(-1)

    @cached_property
    def query_order(self) -> np.ndarray:
        """`order` of the queries."""
        count = self.queries or self.length
        return self.order.reshape(self.pieces, -1)[:, : count // self.pieces].reshape(-1)

    @property
    def chunk(self) -> int:
        """What all chunks are multiples of: tiles that divide it do not mix chunks, which see different keys."""
        return math.gcd(*(size for chunks in self._chunks for size in chunks))

    @property
    def _chunks(self) -> list[tuple[int, int]]:
        streams, C = _streams(self.pattern, self.length)
        C = self.whole or C
        blocks = [size // self.pieces // C for size in streams]
        return [((count - count // 2) * C, count // 2 * C) for count in blocks]

    def allowed(self, q, k):
        """What `pattern` says of the columns in these places (numpy alone)."""
        return self.pattern.allowed(self.query_order[q], self.order[k])

    def within(self, window: int | None) -> "InPieces":
        """The window is the row's."""
        return dataclasses.replace(self, pattern=self.pattern.within(window))

    def for_queries(self, count: int) -> Pattern:
        """What the first `count` columns of the row may see."""
        return self.pattern if self.pieces == 1 else dataclasses.replace(self, queries=count)

    def enter(self, x_BT: jax.Array | None) -> jax.Array | None:
        """A row's columns in the order of the pieces. Fewer columns than the row's get zeros after them."""
        if x_BT is None or self.pieces == 1:
            return x_BT
        return jnp.pad(x_BT, ((0, 0), (0, self.length - x_BT.shape[1])))[:, self.order]

    def read(self, x_BT: Maybe, count: int | None) -> Maybe:
        """The places of the first `count` columns of the row, in the order of the pieces: no device needs another."""
        if x_BT is None or count is None or count == self.length:
            return x_BT
        pieces = x_BT.reshape(x_BT.shape[0], self.pieces, -1, *x_BT.shape[2:])
        return pieces[:, :, : count // self.pieces].reshape(x_BT.shape[0], count, *x_BT.shape[2:])

    def split(self, x_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The noisy and the clean columns of a row that has both, each in the order of the pieces."""
        B, M, rest = x_BT.shape[0], self.pattern.noisy_columns // self.pieces, x_BT.shape[2:]
        pieces = x_BT.reshape(B, self.pieces, -1, *rest)
        return tuple(part.reshape(B, -1, *rest) for part in (pieces[:, :, :M], pieces[:, :, M:]))

    def join(self, noisy_BM: jax.Array, clean_BL: jax.Array) -> jax.Array:
        """The row of its two streams."""
        B, rest = noisy_BM.shape[0], noisy_BM.shape[2:]
        parts = [x.reshape(B, self.pieces, -1, *rest) for x in (noisy_BM, clean_BL)]
        return jnp.concatenate(parts, axis=2).reshape(B, -1, *rest)

    @property
    def beside_noise(self) -> Pattern:
        """What the clean stream's columns see of each other, in the places that they have in the row."""
        alone = self.pattern.clean_pattern
        if self.pieces == 1:
            return alone
        return InPieces(alone, self.pattern.length, self.pieces, whole=self.pattern.block_length)

    def leave(self, x_BTD: jax.Array) -> jax.Array:
        """Columns (all of the row, or the first of it that were `read`) in the row's own order."""
        if self.pieces == 1:
            return x_BTD
        return _permute(x_BTD, np.argsort(dataclasses.replace(self, queries=x_BTD.shape[1]).query_order))


def plan_in_pieces(sight: Sight, heads: tuple[int, int], tiles: Tiles | None = None, interpret: str = ""):
    """`attend(q, k, v)` over columns in the order of the pieces: each device its own queries, against the keys of all.

    Splash takes keys in this order; Triton's kernels and tiles of plain JAX have them back in the row's own. The
    sight's copies and segments lie as the queries and keys do; clean columns' copies are not looked at. `interpret` is
    the platform whose kernels run as Python on any machine.
    """
    mesh, pattern = jax.sharding.get_abstract_mesh(), sight.pattern
    rows, spec_heads = row_axes(sight.batch), head_axes(heads[1])
    x_spec = PartitionSpec(rows, CONTEXT_AXIS, spec_heads, None)
    target, in_python = interpret or kernels_for(tiles), bool(interpret)
    on_tpu = sight.copies_BM is None and target == "tpu"
    if on_tpu and has_partial_tiles(pattern, sight.q_len, sight.k_len, tiles or splash.TILES):
        tiles, own_heads = tiles or splash.TILES, local_heads(*heads)
        kernel = make_kernel(pattern, sight.q_len, sight.k_len, own_heads, tiles, in_python)
        by_piece = NamedSharding(mesh, PartitionSpec(None, CONTEXT_AXIS))
        segments = sight.q_segments_BT, sight.k_segments_BS
        if segments[0] is not None:  # a device needs the documents of all keys: they are gathered here, once
            everywhere = NamedSharding(mesh, PartitionSpec(rows, None))
            segments = segments[0], jax.lax.with_sharding_constraint(segments[1], everywhere)
        arrays = segments, kernel
        specs = (PartitionSpec(rows, CONTEXT_AXIS), PartitionSpec(rows)), kernel.manual_sharding_spec(by_piece)
        local = lambda q, k, v, planned: run_kernel(q, k, v, *planned)  # noqa: E731
    else:
        if target == "gpu":
            tiles = triton.checked(tiles)
            plan, attend = triton.plan_visits, partial(triton.attend_visits, tiles, in_python)
        else:
            tiles, plan, attend = tiles or tiled.TILES, tiled.plan_tour, tiled.attend_tour
        arrays, specs = _plan_pieces(sight, rows, partial(plan, tiles=tiles)), PartitionSpec((*rows, CONTEXT_AXIS))
        places = np.argsort(pattern.order)
        local = lambda q, k, v, planned: attend(q, _permute(k, places), _permute(v, places), planned)  # noqa: E731

    def gathered(q, k, v, arrays):
        return local(q, _gather_keys(k), _gather_keys(v), arrays)

    # A kernel's outputs say nothing of how they vary over the mesh, so that cannot be checked.
    run = jax.shard_map(gathered, in_specs=(x_spec,) * 3 + (specs,), out_specs=x_spec, check_vma=False)
    return lambda q, k, v: run(q, k, v, arrays)


def _permute(x_BSD, places):
    """Each column once, which the compiler would not know by itself: what comes back is not added up."""
    return x_BSD.at[:, places].get(unique_indices=True, mode="promise_in_bounds")


@jax.custom_vjp
def _gather_keys(x_BSKH):
    """All devices' keys or values; what their queries send back is added up in float32."""
    return jax.lax.all_gather(x_BSKH, CONTEXT_AXIS, axis=1, tiled=True)


def _scatter_keys(_, g_BSKH):
    summed = jax.lax.psum_scatter(g_BSKH.astype(jnp.float32), CONTEXT_AXIS, scatter_dimension=1, tiled=True)
    return (summed.astype(g_BSKH.dtype),)


_gather_keys.defvjp(lambda x_BSKH: (_gather_keys(x_BSKH), None), _scatter_keys)


def _plan_pieces(sight: Sight, rows, plan):
    """Each device's plan, of its piece's queries to keys in the row's own order; devices side by side on axis 0."""
    pattern = sight.pattern

    def local(by_row):
        q_ids_BT, k_ids_BS, copies_BT = by_row
        columns_PT = jnp.asarray(pattern.query_order).reshape(pattern.pieces, -1)
        columns_T, places = columns_PT[jax.lax.axis_index(CONTEXT_AXIS)], np.argsort(pattern.order)
        k_ids_BS = jax.lax.all_gather(k_ids_BS, CONTEXT_AXIS, axis=1, tiled=True)[:, places]
        runs_BRT = key_runs(pattern.pattern, len(q_ids_BT), columns_T, pattern.length, copies_BT)
        return plan(runs_BRT, q_ids_BT, k_ids_BS)

    row_spec, plan_spec = PartitionSpec(rows, CONTEXT_AXIS), PartitionSpec((*rows, CONTEXT_AXIS))
    return jax.shard_map(local, in_specs=(row_spec,), out_specs=plan_spec, check_vma=False)(sight.by_row)


def _streams(pattern: Pattern, length: int) -> tuple[list[int], int]:
    """(columns of each stream of a row, each view of the clean one being a stream; columns that no piece may divide)"""
    pattern, _ = unbounded(pattern)
    if not isinstance(pattern, CleanContext):
        return [length], pattern.block_length if isinstance(pattern, BlockCausal) else 1
    views, rest = divmod(pattern.noisy_columns, pattern.length)
    return [pattern.length] * views + [rest] * (rest > 0) + [pattern.length], pattern.block_length
