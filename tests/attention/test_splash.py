"""The TPU kernels, run as Python: equal to the dense reference at odd sizes, forward and backward, on a mesh too."""

from dataclasses import dataclass
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
    Pattern,
    SlidingWindow,
    Tiles,
    attend_dense,
    count_tiles,
)
from tests.attention.planned import attend_splash
from tests.seeds import fresh_rng

SMALL = Tiles(128, 256)


@dataclass(frozen=True)
class TwoViews(Pattern):
    """[noisy | noisy | clean]: a pattern that splash was never told about."""

    length: int
    block_length: int

    def allowed(self, q, k):
        """Each noisy stream as `CleanContext` has it; the two never meet."""
        L = self.length
        streams = CleanContext(L, self.block_length)
        own = (q // L == k // L) | (k // L == 2)
        return own & streams.allowed(np.where(q // L == 2, L, 0) + q % L, np.where(k // L == 2, L, 0) + k % L)


CASES = [  # pattern, T, S, packed documents
    (Causal(), 300, 300, True),  # padded to 384
    (BlockCausal(5), 130, 130, True),
    (Bidirectional(), 128, 200, False),
    (CleanContext(192, 48), 384, 384, False),
    (CleanContext(150, 7, "token_causal"), 300, 300, True),
    (CleanContext(256, 16), 256, 512, True),  # the last layer: noisy queries alone
    (TwoViews(128, 8), 384, 384, True),
    (CleanContext(150, 7, "token_causal", noisy="causal"), 300, 300, True),
    (SlidingWindow(Causal(), 140), 300, 300, True),
    (SlidingWindow(CleanContext(192, 8), 37), 192, 384, True),
    (CleanContext(150, 7, "token_causal", group=3), 300, 300, True),
]


def random_case(pattern, T, S, *, B=2, N=4, K=2, H=8, packed=True):
    """(q, k, v, weight of the loss), segment ids or None"""
    rng = fresh_rng()
    shapes = (B, T, N, H), (B, S, K, H), (B, S, K, H), (B, T, N, H)
    arrays = tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    if not packed:
        return arrays, {}
    length = pattern.length if hasattr(pattern, "length") else pattern.positions(S).max() + 1
    segments_BS = np.tile(np.sort(rng.integers(0, 4, (B, length)), axis=1), S // length).astype(np.int32)
    return arrays, dict(q_segments_BT=segments_BS[:, :T], k_segments_BS=segments_BS)


def value_and_grad(function, arrays, segments):
    def objective(q, k, v):
        out = function(q, k, v, **segments)
        return (out * arrays[3]).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(objective, argnums=(0, 1, 2), has_aux=True))(*arrays[:3])
    return out, *grads


def check(ours, reference):
    for name, a, b in zip(("out", "dq", "dk", "dv"), ours, reference, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-4, err_msg=name)


@pytest.mark.parametrize(("pattern", "T", "S", "packed"), CASES)
def test_splash_equals_the_dense_reference(pattern, T, S, packed):
    arrays, segments = random_case(pattern, T, S, packed=packed)
    splash = partial(attend_splash, pattern=pattern, tiles=SMALL, interpret=True)
    ours = value_and_grad(splash, arrays, segments)
    check(ours, value_and_grad(partial(attend_dense, pattern=pattern), arrays, segments))


@pytest.mark.parametrize(("heads", "shape"), [(2, (1, 2, 2, 1)), (3, (2, 1, 2, 1))])
def test_splash_on_a_mesh_equals_the_dense_reference(heads, shape):
    """Rows over data and fsdp, key heads over tensor; three key heads do not divide and stay whole."""
    pattern = CleanContext(100, 20)
    arrays, segments = random_case(pattern, 200, 200, N=2 * heads, K=heads)
    splash = partial(attend_splash, pattern=pattern, tiles=SMALL, interpret=True)
    mesh = jax.make_mesh(shape, ("data", "fsdp", "tensor", "context"), axis_types=(AxisType.Auto,) * 4)
    with jax.set_mesh(mesh):
        ours = value_and_grad(splash, arrays, segments)
    check(ours, value_and_grad(partial(attend_dense, pattern=pattern), arrays, segments))


@pytest.mark.parametrize(("L", "C", "tile"), [(4096, 16, 512), (4096, 64, 512), (2304, 48, 384), (1536, 1, 128)])
def test_tiles_visited_are_those_of_the_method(L, C, tile):
    """1/4 + T / 2L of all tiles (density of tiles of side T > C), forward; and never more than 1.15 times that."""
    visited, total = count_tiles(CleanContext(L, C), 2 * L, 2 * L, Tiles(tile, tile))
    assert total == (2 * L // tile) ** 2
    assert visited <= 1.15 * (1 / 4 + tile / (2 * L)) * total
    assert visited * tile * tile >= L * L + L * C  # all attended pairs lie in them


def test_every_kernel_skips_what_the_mask_forbids():
    from edlm_jax.attention.splash import make_kernel

    kernel = make_kernel(CleanContext(1024, 16), 2048, 2048, 1, Tiles(256, 256))
    for info in (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info):
        assert int((np.asarray(info.block_mask) > 0).sum()) == 4 * 4 + 2 * 4
        assert info.partial_mask_blocks.shape == (3, 256, 256)  # not one for each of the twelve partial tiles


def test_the_last_layer_visits_the_noisy_rows_alone():
    whole, _ = count_tiles(CleanContext(1024, 16), 2048, 2048, Tiles(128, 128))
    noisy, _ = count_tiles(CleanContext(1024, 16), 1024, 2048, Tiles(128, 128))
    assert (whole, noisy) == (8 * 8 + 2 * 8, 8 + 8 * 9 // 2)


def test_no_square_of_two_streams_is_ever_formed():
    """Forward and backward, lowered for TPU: nothing has 2L x 2L elements, and key heads stay grouped."""
    L, B, N, K, H = 1024, 1, 4, 2, 128
    arrays = [jax.ShapeDtypeStruct((B, 2 * L, heads, H), jnp.bfloat16) for heads in (N, K, K)]
    segments = jax.ShapeDtypeStruct((B, 2 * L), jnp.int32)

    def text(function):
        def total(q, k, v, ids):
            return function(q, k, v, q_segments_BT=ids, k_segments_BS=ids).astype(jnp.float32).sum()

        gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
        return gradient.trace(*arrays, segments).lower(lowering_platforms=("tpu",)).as_text()

    pattern = CleanContext(L, 16)
    ours, dense = text(partial(attend_splash, pattern=pattern)), text(partial(attend_dense, pattern=pattern))
    assert ours.count("tpu_custom_call") == 3  # forward, dq, dk and dv
    assert f"{2 * L}x{2 * L}x" in dense and f"{2 * L}x{2 * L}x" not in ours
    assert f"{B}x{N}x{2 * L}x{H}xbf16" in ours and f"{B}x{K}x{2 * L}x{H}xbf16" in ours
