"""Attention in tiles of plain JAX: equal to the dense reference at odd sizes, forward and backward, on a mesh too."""

from functools import partial
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from edlm_jax.attention import CleanContext, Tiles, attend_dense, tiled
from edlm_jax.attention.tiled import _widths
from tests.attention.planned import attend
from tests.attention.test_splash import check, random_case, value_and_grad
from tests.attention.test_triton import CASES, COPIES, chosen_copies, dense, lowered, random_documents

MODULE = import_module("edlm_jax.attention.attend")
SHORT, TILES = MODULE._SHORT["cpu"], tiled.TILES


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """So that short rows have several, and `attend` takes them."""
    monkeypatch.setattr(tiled, "TILES", Tiles(16, 32))
    monkeypatch.setitem(MODULE._SHORT, "cpu", 0)


@pytest.mark.parametrize(("pattern", "T", "S", "documents"), CASES)
def test_tiles_equal_the_dense_reference(pattern, T, S, documents):
    arrays, _ = random_case(pattern, T, S, packed=False)
    segments = random_documents(documents, pattern, T, S)
    ours = value_and_grad(partial(attend, pattern=pattern), arrays, segments)
    check(ours, value_and_grad(partial(attend_dense, pattern=pattern), arrays, segments))


@pytest.mark.parametrize(("L", "C", "M", "clean", "noisy", "T", "window", "group"), COPIES)
def test_copies_known_inside_the_step(L, C, M, clean, noisy, T, window, group):
    copies_BM, segments_BT, mask_BTS = chosen_copies(L, C, M, clean, noisy, window, group)
    pattern = CleanContext(L, C, clean, M, noisy, group).within(window)
    arrays, _ = random_case(pattern, T, M + L, packed=False, N=6, K=2, H=24)
    segments = dict(q_segments_BT=segments_BT[:, :T], k_segments_BS=segments_BT)
    ours = value_and_grad(partial(attend, pattern=pattern, copies_BM=jnp.asarray(copies_BM)), arrays, segments)
    check(ours, value_and_grad(partial(dense, mask_BTS=jnp.asarray(mask_BTS[:, :T])), arrays, {}))


def test_tiles_on_a_mesh_equal_the_dense_reference():
    """Rows over data and fsdp, key heads over tensor."""
    L, C, M, heads = 32, 4, 16, 2
    copies_BM, segments_BT, mask_BTS = chosen_copies(L, C, M)
    pattern = CleanContext(L, C, noisy_length=M)
    arrays, _ = random_case(pattern, M + L, M + L, N=2 * heads, K=heads, packed=False)
    with jax.set_mesh(
        jax.make_mesh((1, 2, 2, 1), ("data", "fsdp", "tensor", "context"), axis_types=(AxisType.Auto,) * 4)
    ):
        segments = dict(q_segments_BT=segments_BT, k_segments_BS=segments_BT, copies_BM=jnp.asarray(copies_BM))
        ours = value_and_grad(partial(attend, pattern=pattern), arrays, segments)
    check(ours, value_and_grad(partial(dense, mask_BTS=jnp.asarray(mask_BTS)), arrays, {}))


def test_half_precision_is_that_of_its_inputs():
    pattern = CleanContext(64, 8)
    arrays, segments = random_case(pattern, 128, 128)
    half = [x.astype(jnp.bfloat16) for x in arrays]
    ours = value_and_grad(partial(attend, pattern=pattern), half, segments)
    exact = [x.astype(jnp.float32) for x in half]
    for a, b in zip(ours, value_and_grad(partial(attend_dense, pattern=pattern), exact, segments), strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.03 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("most", [1, 2, 3, 5, 17, 64])
def test_widths_waste_at_most_a_third(most):
    widths = _widths(most)
    assert widths == sorted(set(widths)) and widths[0] == 1 and widths[-1] == most
    assert widths[1:2] in ([], [2])
    assert all(2 * after <= 3 * before for before, after in zip(widths[1:], widths[2:], strict=False))


def test_long_rows_take_the_tiles_and_never_form_a_square(monkeypatch):
    monkeypatch.setattr(tiled, "TILES", TILES)
    monkeypatch.setitem(MODULE._SHORT, "cpu", SHORT)
    tile = "128x256xf32"  # scores of two tiles of keys
    long, short = (lowered(attend, CleanContext(L, 16), L, platform="cpu") for L in (1024, SHORT // 2))
    assert tile in long and "2048x2048x" not in long
    assert "while" in long and "while" not in short


def test_copies_of_long_rows_take_the_tiles_on_a_tpu_too():
    L, copies_BM = 1024, jnp.arange(1024)[None] // 16 * 16 % 1024 + jnp.arange(1024)[None] % 16
    text = lowered(partial(attend, copies_BM=copies_BM), CleanContext(L, 16), L, platform="tpu")
    assert "while" in text and f"{TILES.queries}x{TILES.keys}x" in text and f"x{L - 16}xf32" not in text


def test_a_remat_policy_keeps_what_the_backward_pass_reads():
    by_name = jax.checkpoint_policies.save_only_these_names("attention")
    nothing = jax.checkpoint_policies.nothing_saveable
    texts = [lowered(attend, CleanContext(64, 16), 64, policy, platform="cpu") for policy in (by_name, nothing)]
    kept, again = (text.count("stablehlo.exponential") for text in texts)
    assert kept < again
