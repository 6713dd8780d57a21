"""The GPU kernels, run as Python: equal to the dense reference at odd sizes, forward and backward, on a mesh too; and
lowered for GPU. Nothing here has run on one: `python -m tests.benchmarks.attention` compares and times them there.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from edlm_jax.attention import (
    Bidirectional,
    BlockCausal,
    Causal,
    CleanContext,
    Pattern,
    SlidingWindow,
    Tiles,
    attend_dense,
    same_segment,
)
from edlm_jax.attention.intervals import _read_runs, key_runs, may_look, visits
from edlm_jax.attention.pattern import PromptThenBlock
from edlm_jax.attention.reference import combine, partial_attention
from edlm_jax.errors import InputError
from tests.attention.planned import attend, attend_triton
from tests.attention.test_splash import check, random_case, value_and_grad
from tests.seeds import fresh_rng

SMALL = Tiles(32, 16)

CASES = [  # pattern, T, S, documents; one shape when padded, so that they share their kernels' compilation
    (Causal(), 113, 113, "sorted"),
    (BlockCausal(5), 125, 125, "scattered"),
    (Bidirectional(), 100, 120, None),
    (CleanContext(64, 16), 128, 128, None),  # whole tiles
    (CleanContext(60, 7, "token_causal"), 120, 120, "sorted"),  # a last short block
    (CleanContext(24, 8, noisy_length=104), 104, 128, "scattered"),  # the last layer: noisy queries alone
    (CleanContext(36, 6, "token_causal", noisy_length=90), 126, 126, "scattered"),  # two views and a half
    (CleanContext(57, 1), 114, 114, "sorted"),
    (CleanContext(60, 7, "token_causal", noisy="causal"), 120, 120, "sorted"),
    (SlidingWindow(Causal(), 30), 113, 113, "scattered"),
    (SlidingWindow(CleanContext(60, 5), 17), 120, 120, "sorted"),
    (CleanContext(61, 5, "token_causal", group=3), 122, 122, "scattered"),  # the last group has a block and a token
]


def random_documents(kind, pattern, T, S, B=2):
    """Sorted ids with padding in front, or padding between and inside documents too; the same on all streams."""
    if kind is None:
        return {}
    rng, columns = fresh_rng(), pattern.positions(S)
    segments_BL = np.sort(rng.integers(0, 4, (B, columns.max() + 1)), axis=1)
    if kind == "scattered":
        segments_BL = np.where(rng.random(segments_BL.shape) < 0.3, 0, segments_BL)
    segments_BS = segments_BL.astype(np.int32)[:, columns]
    return dict(q_segments_BT=segments_BS[:, :T], k_segments_BS=segments_BS)


def value_and_grad_triton(arrays, segments, **how):
    """Not under jit as a whole: the mask stays an argument of what is compiled."""
    q_BTNH, k_BSKH, v_BSKH, weight_BTNH = arrays
    attention = partial(attend_triton, interpret=True, **{"tiles": SMALL, **segments, **how})
    out_BTNH, backward = jax.vjp(attention, q_BTNH, k_BSKH, v_BSKH)
    return out_BTNH, *backward(weight_BTNH)


@pytest.mark.parametrize(("pattern", "T", "S", "documents"), CASES)
def test_triton_equals_the_dense_reference(pattern, T, S, documents):
    arrays, _ = random_case(pattern, T, S, packed=False)
    segments = random_documents(documents, pattern, T, S)
    ours = value_and_grad_triton(arrays, segments, pattern=pattern)
    check(ours, value_and_grad(partial(attend_dense, pattern=pattern), arrays, segments))


def test_other_heads_and_tiles():
    pattern = CleanContext(40, 4, noisy_length=80)
    arrays, segments = random_case(pattern, 120, 120, N=3, K=1, H=24)
    ours = value_and_grad_triton(arrays, segments, pattern=pattern, tiles=Tiles(16, 64))
    check(ours, value_and_grad(partial(attend_dense, pattern=pattern), arrays, segments))


GROUPS = [
    (40, 5, 80, "token_causal", "bidirectional", 120, None, 2),
    (24, 4, 96, "block_causal", "bidirectional", 96, None, 3),
    (40, 5, 80, "block_causal", "bidirectional", 120, 13, 4),
]  # chosen noisy groups of blocks: sizes, streams, queries, window, blocks of a group
COPIES = [
    (40, 5, 80, "token_causal", "bidirectional", 120, None, 1),
    (24, 4, 100, "block_causal", "bidirectional", 100, None, 1),
    (40, 5, 80, "token_causal", "causal", 120, None, 1),
    (40, 5, 80, "block_causal", "bidirectional", 120, 13, 1),
    (40, 8, 80, "token_causal", "causal", 80, 3, 1),
    *GROUPS,
]


def chosen_copies(L, C, M, clean="block_causal", noisy="bidirectional", window=None, group=1, B=2):
    """(copies_BM, documents, the mask) of groups of noisy blocks that begin at blocks drawn at random, some twice."""
    rng, span = fresh_rng(), group * C
    first_BG1 = rng.integers(0, L // C - group + 1, (B, M // span, 1)) * C
    copies_BM = (first_BG1 + np.arange(span)).reshape(B, M).astype(np.int32)
    columns_BT = np.concatenate([copies_BM, np.tile(np.arange(L, 2 * L), (B, 1))], axis=1)
    segments_BT = random_documents("sorted", CleanContext(L, C), 2 * L, 2 * L)["k_segments_BS"]
    segments_BT = np.take_along_axis(segments_BT, columns_BT, axis=1)
    # In the row that has every block's noisy copy once these are its columns; but a block is not its own second copy,
    mask_TT = CleanContext(L, C, clean, noisy=noisy).within(window).dense(2 * L, 2 * L)
    mask_BTS = mask_TT[columns_BT[:, :, None], columns_BT[:, None]]
    block_T = np.concatenate([np.arange(M) // C, np.full(L, -1)])
    mask_BTS &= ((block_T[:, None] == block_T[None]) | (block_T < 0)[None])[None]
    # and what it would see of its group's clean blocks it sees of the noisy ones.
    for row, noisy_q in np.ndindex(B, M):
        start = noisy_q // span * span
        of_group = slice(start, noisy_q // C * C)
        clean_group = M + copies_BM[row, of_group]
        mask_BTS[row, noisy_q, of_group] = mask_BTS[row, noisy_q, clean_group]
        mask_BTS[row, noisy_q, clean_group] = False
    return copies_BM, segments_BT, mask_BTS & np.asarray(same_segment(segments_BT, segments_BT))


def dense(q_BTNH, k_BSKH, v_BSKH, mask_BTS, **_):
    """`attend_dense` under any mask."""
    return combine([partial_attention(q_BTNH, k_BSKH, v_BSKH, mask_BTS)], q_BTNH)


@pytest.mark.parametrize(("L", "C", "M", "clean", "noisy", "T", "window", "group"), COPIES)
def test_copies_known_inside_the_step(L, C, M, clean, noisy, T, window, group):
    copies_BM, segments_BT, mask_BTS = chosen_copies(L, C, M, clean, noisy, window, group)
    pattern = CleanContext(L, C, clean, M, noisy, group).within(window)
    arrays, _ = random_case(pattern, T, M + L, packed=False)
    segments = dict(q_segments_BT=segments_BT[:, :T], k_segments_BS=segments_BT)

    ours = value_and_grad_triton(arrays, segments, pattern=pattern, copies_BM=copies_BM)
    check(ours, value_and_grad(partial(dense, mask_BTS=jnp.asarray(mask_BTS[:, :T])), arrays, {}))


def test_triton_on_a_mesh_equals_the_dense_reference():
    """Rows over data and fsdp, key heads over tensor, as splash has them."""
    L, C, M, heads = 32, 4, 16, 2
    copies_BM, segments_BT, mask_BTS = chosen_copies(L, C, M)
    pattern = CleanContext(L, C, noisy_length=M)
    arrays, _ = random_case(pattern, M + L, M + L, N=2 * heads, K=heads, packed=False)
    mesh = jax.make_mesh((1, 2, 2, 1), ("data", "fsdp", "tensor", "context"), axis_types=(AxisType.Auto,) * 4)
    with jax.set_mesh(mesh):
        segments = dict(q_segments_BT=segments_BT, k_segments_BS=segments_BT, copies_BM=jnp.asarray(copies_BM))
        how = dict(pattern=pattern, tiles=SMALL, interpret=True)
        ours = value_and_grad(partial(attend_triton, **how), arrays, segments)
    check(ours, value_and_grad(partial(dense, mask_BTS=jnp.asarray(mask_BTS)), arrays, {}))


def test_half_precision_is_that_of_its_inputs():
    pattern = CleanContext(64, 8)
    arrays, segments = random_case(pattern, 128, 128)
    half = [x.astype(jnp.bfloat16) for x in arrays]
    ours = value_and_grad_triton(half, segments, pattern=pattern)
    exact = [x.astype(jnp.float32) for x in half]
    for a, b in zip(ours, value_and_grad(partial(attend_dense, pattern=pattern), exact, segments), strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.03 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("case", [*CASES, (PromptThenBlock(40, Causal()), 44, 44), (Causal(), 5, 9)])
def test_runs_are_those_of_the_mask(case):
    pattern, T, S = case[:3]
    runs_RT1 = _read_runs(pattern, T, S)[:, :, None]
    zero = np.int32(0)
    assert (np.asarray(may_look(runs_RT1, np.arange(S)[None], zero, zero)) == pattern.dense(T, S)).all()


@pytest.mark.parametrize("documents", [None, "sorted", "scattered"])
@pytest.mark.parametrize("copies", [False, True])
def test_visited_tiles_hold_all_that_may_be_looked_at(copies, documents):
    L, C, M, tile = 48, 4, 96, 8
    pattern = CleanContext(L, C, noisy_length=M)
    copies_BM = chosen_copies(L, C, M)[0] if copies else None
    S = M + L
    ids_BS = random_documents(documents, pattern, S, S).get("k_segments_BS", np.zeros((2, S), np.int32))
    runs_BRT = key_runs(pattern, 2, np.arange(S), S, copies_BM)
    edges = [runs_BRT[:, edge, :, None] for edge in range(4)]
    mask = may_look(edges, jnp.arange(S)[None, None], ids_BS[:, :, None], ids_BS[:, None])
    if not copies:
        assert (mask == pattern.dense(S, S)[None] & (ids_BS[:, :, None] == ids_BS[:, None])).all()
    seen_BIJ, whole_BIJ = visits(runs_BRT, ids_BS, ids_BS, 2 * tile, tile)
    by_tile = mask.reshape(2, S // (2 * tile), 2 * tile, S // tile, tile)
    assert (whole_BIJ == by_tile.all((2, 4))).all() and (seen_BIJ >= by_tile.any((2, 4))).all()
    if documents is None:
        assert (seen_BIJ == by_tile.any((2, 4))).all()


@pytest.mark.parametrize(("L", "C", "tile"), [(2048, 16, 128), (1024, 64, 64), (3072, 48, 128), (512, 1, 64)])
def test_tiles_visited_are_those_of_the_method(L, C, tile):
    """1/4 + T / 2L of all tiles (density of tiles of side T > C), and most of them without a mask."""
    none = np.zeros((1, 2 * L), np.int32)
    runs_BRT = key_runs(CleanContext(L, C), 1, np.arange(2 * L), 2 * L)
    seen, whole = (int(x.sum()) for x in visits(runs_BRT, none, none, tile, tile))
    assert seen <= 1.15 * (1 / 4 + tile / (2 * L)) * (2 * L // tile) ** 2
    assert seen * tile * tile >= L * L + L * C  # all attended pairs lie in them
    assert seen - whole <= 8 * L / tile  # no more than edges of runs: one or two of each run of a tile's queries


def test_packed_documents_skip_each_other():
    """Sixteen documents visit about a sixteenth, with padding between them too."""
    L, C, tile = 2048, 16, 64
    runs_BRT = key_runs(CleanContext(L, C), 1, np.arange(2 * L), 2 * L)

    def seen(segments_L):
        ids = np.tile(segments_L.astype(np.int32), 2)[None]
        return int(visits(runs_BRT, ids, ids, tile, tile).seen_BIJ.sum())

    documents_L = np.arange(L) // 128 + 1
    one = seen(np.ones(L))
    assert seen(documents_L) < one / 6
    assert seen(np.where(np.arange(L) % 128 < 5, 0, documents_L)) < one / 2  # the padding itself sees far


@dataclass(frozen=True)
class EverySecond(Pattern):
    """As many runs as keys."""

    def allowed(self, q, k):
        """Even distances."""
        return (q - k) % 2 == 0


def test_a_pattern_that_no_kernel_reads_is_refused():
    with pytest.raises(InputError, match="more than 2 runs"):
        key_runs(EverySecond(), 1, np.arange(8), 8)


def lowered(function, pattern, L, remat=None, device="NVIDIA H100 80GB HBM3", platform="gpu"):
    """The program for that device, which need not be there, forward and backward, of a packed row of bfloat16."""
    arrays = [jax.ShapeDtypeStruct((1, 2 * L, heads, 128), jnp.bfloat16) for heads in (4, 2, 2)]
    ids = jax.ShapeDtypeStruct((1, 2 * L), jnp.int32)

    def total(q, k, v, ids):
        attention = partial(function, pattern=pattern, q_segments_BT=ids, k_segments_BS=ids)
        attention = attention if remat is None else jax.checkpoint(attention, policy=remat)
        return (attention(q, k, v).astype(jnp.float32) ** 2).sum()

    device = AbstractDevice(device, None, platform)
    mesh = AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device)
    with use_abstract_mesh(mesh):
        traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(*arrays, ids)
        return traced.lower(lowering_platforms=("cuda" if platform == "gpu" else platform,)).as_text()


def test_no_square_of_two_streams_is_ever_formed():
    """Forward and backward, lowered for GPU: nothing has 2L x 2L elements, and key heads stay grouped."""
    L, pattern = 1024, CleanContext(1024, 16)
    ours, reference = lowered(attend_triton, pattern, L), lowered(attend_dense, pattern, L)
    found = ours.count("xla.gpu.triton"), *(f"{2 * L}x{2 * L}x" in text for text in (reference, ours))
    assert found == (3, True, False)  # kernels: forward; dq; dk and dv
    grouped = [f"1x{2 * L}x{heads}x128xbf16" in ours for heads in (4, 2)]
    assert all(grouped)


def test_a_remat_policy_keeps_what_the_backward_pass_reads():
    by_name = jax.checkpoint_policies.save_only_these_names("attention")
    nothing = jax.checkpoint_policies.nothing_saveable
    texts = [lowered(attend_triton, CleanContext(256, 16), 256, policy) for policy in (by_name, nothing)]
    counts = [text.count("call @_forward") for text in texts]
    assert counts == [1, 2]


@pytest.mark.parametrize(("platform", "L", "tiled"), [("gpu", 64, False), ("gpu", 512, True), ("cpu", 512, False)])
def test_attend_takes_the_kernels_on_a_gpu_where_rows_are_long(platform, L, tiled):
    found = "xla.gpu.triton" in lowered(attend, CleanContext(L, 16), L, platform=platform)
    assert found == tiled
