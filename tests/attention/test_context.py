"""Rows in pieces: each device holds matching blocks and equal work, and attends as the dense reference does."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from edlm_jax.attention import (
    Bidirectional,
    BlockCausal,
    Causal,
    CleanContext,
    InPieces,
    SlidingWindow,
    Tiles,
    attend_dense,
    count_tiles,
)
from edlm_jax.attention.intervals import key_runs, visits
from tests.attention.planned import attend, attend_in_pieces
from tests.seeds import fresh_rng

SMALL = Tiles(128, 128)
CASES = [  # pattern, columns of a row, mesh (data, fsdp, tensor, context), queries or None, packed
    (Causal(), 66, (1, 1, 1, 2), None, True),
    (BlockCausal(5), 60, (1, 1, 1, 4), None, True),  # three blocks a device: an odd number
    (BlockCausal(128), 768, (1, 1, 1, 2), None, False),  # tiles are seen as a whole or not at all
    (CleanContext(384, 64), 768, (1, 1, 1, 2), None, False),  # one device has more tiles than the other
    (Bidirectional(), 48, (1, 1, 1, 4), None, False),
    (CleanContext(24, 4), 48, (1, 1, 1, 2), 24, True),
    (CleanContext(35, 5, "token_causal"), 70, (1, 1, 1, 7), None, True),  # one block a device
    (CleanContext(256, 16), 512, (1, 1, 1, 2), None, True),  # tiles of several chunks
    (CleanContext(192, 32), 384, (1, 1, 2, 2), 192, False),
    (CleanContext(16, 4, noisy_length=32), 48, (2, 1, 1, 4), 32, True),  # two views
    (CleanContext(16, 4, noisy_length=40), 56, (1, 2, 1, 2), None, True),  # two and a half
    (CleanContext(35, 5, "token_causal", noisy="causal"), 70, (1, 1, 1, 7), None, True),
    (SlidingWindow(CleanContext(24, 4), 9), 48, (1, 1, 1, 2), 24, True),
    (SlidingWindow(BlockCausal(5), 13), 60, (1, 1, 1, 4), None, True),
    (CleanContext(32, 4, "token_causal", group=4), 64, (1, 1, 1, 4), 32, True),  # pieces divide groups
]


def set_mesh(shape):
    return jax.set_mesh(jax.make_mesh(shape, ("data", "fsdp", "tensor", "context"), axis_types=(AxisType.Auto,) * 4))


def random_case(pattern, length, queries, packed, *, B=2, N=4, K=2, H=8):
    """(q, k, v, weight of the loss), (segments of queries, of keys) or (None, None): in the row's own order."""
    rng = fresh_rng()
    shapes = ((queries or length, N), (length, K), (length, K), (queries or length, N))
    arrays = [jnp.asarray(rng.normal(size=(B, columns, heads, H)), jnp.float32) for columns, heads in shapes]
    if not packed:
        return arrays, (None, None)
    columns = pattern.positions(length)
    segments_BS = np.sort(rng.integers(0, 4, (B, columns.max() + 1)), axis=1).astype(np.int32)[:, columns]
    return arrays, (segments_BS[:, :queries], segments_BS)


def value_and_grad(function, arrays):
    def objective(q, k, v):
        out = function(q, k, v)
        return (out * arrays[3]).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(objective, argnums=(0, 1, 2), has_aux=True))(*arrays[:3])
    return out, *grads


def in_pieces(function, row, segments, copies=None):
    """The function of columns in pieces, as one of columns in the row's own order."""

    def whole(q, k, v):
        T = q.shape[1]
        keys, queries = (lambda x: x[:, row.order]), (lambda x: x[:, row.for_queries(T).query_order])
        arranged = dict(pattern=row.for_queries(T))
        if segments[0] is not None:
            arranged |= dict(q_segments_BT=queries(segments[0]), k_segments_BS=keys(segments[1]))
        if copies is not None:
            arranged |= dict(copies_BM=row.read(row.enter(copies), T))
        return row.leave(function(queries(q), keys(k), keys(v), **arranged))

    return whole


def check(ours, reference):
    for name, a, b in zip(("out", "dq", "dk", "dv"), ours, reference, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-4, err_msg=name)


@pytest.mark.parametrize("kernels", ["", "tpu", "gpu"])
@pytest.mark.parametrize(("pattern", "length", "shape", "queries", "packed"), CASES)
def test_pieces_attend_as_the_dense_reference(pattern, length, shape, queries, packed, kernels):
    arrays, segments = random_case(pattern, length, queries, packed)
    dense = partial(attend_dense, pattern=pattern, q_segments_BT=segments[0], k_segments_BS=segments[1])
    with set_mesh(shape):
        row = InPieces.on_mesh(pattern, length)
        assert row.pieces == shape[3]
        ours = value_and_grad(
            in_pieces(partial(attend_in_pieces, tiles=SMALL, interpret=kernels), row, segments), arrays
        )
    check(ours, value_and_grad(dense, arrays))


@pytest.mark.parametrize("clean", ["block_causal", "token_causal"])
@pytest.mark.parametrize(("queries", "kernels"), [(None, ""), (30, ""), (None, "gpu")])
@pytest.mark.parametrize("group", [1, 2])  # pieces of three blocks divide groups of two
def test_copies_in_pieces_attend_as_those_of_a_whole_row(clean, queries, kernels, group):
    rng, L, C, M = fresh_rng(), 40, 5, 30
    pattern, span = CleanContext(L, C, clean, noisy_length=M, group=group), group * C
    starts_BG = np.stack([rng.permutation(L // C - group + 1)[: M // span] for _ in range(2)])
    copies_BM = starts_BG[..., None] * C + np.arange(span)
    copies_BM = jnp.asarray(copies_BM.reshape(2, M))
    arrays, _ = random_case(pattern, M + L, queries, False)
    clean_BL = np.sort(rng.integers(0, 4, (2, L)), axis=1)
    segments_BS = np.concatenate([np.take_along_axis(clean_BL, np.asarray(copies_BM), axis=1), clean_BL], axis=1)
    segments = segments_BS[:, :queries], segments_BS
    how = dict(pattern=pattern, q_segments_BT=segments[0], k_segments_BS=segments[1], copies_BM=copies_BM)
    expected = value_and_grad(partial(attend, **how), arrays)
    with set_mesh((1, 1, 2, 2)):
        row = InPieces.on_mesh(pattern, M + L)
        assert row.pieces == 2
        ours = value_and_grad(in_pieces(partial(attend_in_pieces, interpret=kernels), row, segments, copies_BM), arrays)
    check(ours, expected)


@pytest.mark.parametrize("pieces", [2, 4, 8])
@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
def test_every_piece_holds_matching_blocks_of_both_streams(pieces, blocks):
    C = int(fresh_rng().integers(1, 7))
    L = pieces * blocks * C
    for noisy_length in (L, 2 * L):
        row = InPieces(CleanContext(L, C, noisy_length=noisy_length), noisy_length + L, pieces)
        assert sorted(row.order) == list(range(noisy_length + L))
        for piece in row.order.reshape(pieces, -1):
            clean = piece[piece >= noisy_length] - noisy_length
            assert len(clean) == blocks * C and all(np.bincount(clean // C)[clean // C] == C)  # whole blocks
            for view in range(noisy_length // L):
                np.testing.assert_array_equal(piece[piece // L == view] - view * L, clean)
        np.testing.assert_array_equal(row.for_queries(noisy_length).query_order, row.order[row.order < noisy_length])


@pytest.mark.parametrize("clean", ["block_causal", "token_causal"])
def test_every_piece_has_equal_work(clean):
    """Pairs exactly, tiles too where they divide chunks; with an odd number of blocks, up to a share of one of them."""
    L, C, X = 1024, 16, 4
    pattern = CleanContext(L, C, clean)
    row = InPieces(pattern, 2 * L, X)
    for queries in (None, L):
        of_queries = row.for_queries(queries)
        pairs = of_queries.dense(queries or 2 * L, 2 * L).reshape(X, -1).sum(1)
        assert len(set(pairs)) == 1
        visits = tiled_visits(of_queries)
        assert visits.min() == visits.max()  # nothing idles
        assert visits.sum() == count_tiles(of_queries, queries or 2 * L, 2 * L, SMALL)[0]
        assert visits.sum() == count_tiles(pattern, queries or 2 * L, 2 * L, SMALL)[0]  # nor is any tile more
    as_cut = pattern.dense(2 * L, 2 * L).reshape(X, -1).sum(1)
    assert as_cut.max() > 2 * as_cut.min()
    odd = InPieces(CleanContext(X * 5 * C, C), 2 * X * 5 * C, X)
    pairs = odd.dense(odd.length, odd.length).reshape(X, -1).sum(1)
    assert pairs.max() < 1.35 * pairs.min()


def tiled_visits(row):
    """Of each piece, tiles of 128 x 128."""
    columns_PT, none = row.query_order.reshape(row.pieces, -1), np.zeros((1, row.length), np.int32)
    runs = [key_runs(row.pattern, 1, columns_T, row.length) for columns_T in columns_PT]
    return np.array(
        [visits(runs_BRT, none[:, : len(columns_PT[0])], none, 128, 128).seen_BIJ.sum() for runs_BRT in runs]
    )


def test_columns_come_back():
    x_BTD = fresh_rng().normal(size=(2, 36, 3))
    row = InPieces(CleanContext(12, 2, noisy_length=24), 36, 3)
    arranged = row.enter(x_BTD[..., 0])
    np.testing.assert_array_equal(row.leave(arranged), x_BTD[..., 0].astype(np.float32))
    np.testing.assert_array_equal(row.leave(row.read(jnp.asarray(x_BTD[:, row.order]), 24)), jnp.asarray(x_BTD[:, :24]))


def test_rows_that_whole_blocks_do_not_divide_stay_whole():
    with set_mesh((1, 1, 1, 2)):
        assert InPieces.on_mesh(BlockCausal(4), 20).pieces == 1
        assert InPieces.on_mesh(CleanContext(16, 4, noisy_length=20), 36).pieces == 1
        assert InPieces.on_mesh(CleanContext(16, 4), 32).pieces == 2
    assert InPieces.on_mesh(CleanContext(16, 4), 32).pieces == 1


@pytest.mark.parametrize("kernels", ["", "tpu", "gpu"])
def test_no_device_ever_forms_a_square_of_two_streams(kernels):
    L = 1024
    with set_mesh((1, 1, 1, 2)):
        row = InPieces.on_mesh(CleanContext(L, 16), 2 * L)
        arrays = [jax.ShapeDtypeStruct((1, 2 * L, heads, 128), jnp.bfloat16) for heads in (4, 2, 2)]
        function = partial(attend_in_pieces, pattern=row, interpret=kernels)
        gradient = jax.jit(jax.grad(lambda *x: function(*x).astype(jnp.float32).sum(), argnums=(0, 1, 2)))
        text = gradient.lower(*arrays).as_text()
    assert {"": "128x256x", "tpu": "256x256x", "gpu": "64x64x"}[kernels] in text  # the text does show a tile
    assert f"{2 * L}x{2 * L}x" not in text and f"{L}x{2 * L}x" not in text
