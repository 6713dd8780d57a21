"""Decoding's CPU kernels: right to float32's last digits, and to the bit the same whatever stands beside a row."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from edlm_jax.attention import attend_cached
from edlm_jax.models.backend import Xla
from edlm_jax.models.layer import rms_norm
from edlm_jax.parallel import cpu

# tests/test_packaging.py says that they are there wherever a compiler is.
pytestmark = pytest.mark.skipif(not cpu.available(), reason="this installation found no C++ compiler")

SHAPES = [(1, 1), (7, 33), (1024, 96), (576, 130)]  # 1024: rows that are spread; 576: shared out between threads


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("D, F", SHAPES)
def test_product_has_the_same_bits_for_1_to_64_rows(rng, D, F, narrow):
    x_MD, w_DF = normal(rng, 100, D), normal(rng, D, F)
    if narrow:
        w_DF = np.asarray(jnp.asarray(w_DF).astype(jnp.bfloat16).astype(jnp.float32))
    packed = cpu.pack(jnp.asarray(w_DF))
    assert packed.strips.dtype == (jnp.uint16 if narrow else jnp.float32)
    whole_MF = np.asarray(cpu.product(x_MD, packed))
    exact_MF = x_MD.astype(np.float64) @ w_DF
    bound_MF = np.abs(x_MD).astype(np.float64) @ np.abs(w_DF) * D**0.5 * np.finfo(np.float32).eps
    assert (np.abs(whole_MF - exact_MF) <= bound_MF).all()
    for rows in range(1, 65) if D == 7 else (1, 2, 3, 8, 13, 64):  # each is a program to compile
        first = rng.integers(0, 100 - rows)
        part_MF = cpu.product(x_MD[first : first + rows], packed)
        np.testing.assert_array_equal(part_MF, whole_MF[first : first + rows], err_msg=f"{rows} rows")
    wanted_M = rng.random(100) < 0.3
    some_1MF = cpu.product(x_MD[None], dataclasses.replace(packed, wanted_BT=jnp.asarray(wanted_M)[None]))
    np.testing.assert_array_equal(some_1MF[0], np.where(wanted_M[:, None], whole_MF, 0))


def test_product_takes_any_axes_and_gives_its_columns_back(rng):
    x_BTNH, w_NHD = normal(rng, 2, 3, 4, 5), normal(rng, 4, 5, 37)
    packed = cpu.pack(jnp.asarray(w_NHD), summed=2)
    out_BTD = cpu.product(x_BTNH.reshape(2, 3, 20), packed)
    np.testing.assert_allclose(out_BTD, np.einsum("BTNH,NHD->BTD", x_BTNH, w_NHD), rtol=1e-4, atol=1e-5)
    index = np.array([[0, 36], [31, 32]])
    np.testing.assert_array_equal(packed.columns(index), w_NHD.reshape(20, 37).T[index])
    assert cpu.product(np.zeros((0, 3, 20), np.float32), packed).shape == (0, 3, 37)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("D, parts", [(7, (33,)), (1024, (32, 96, 64)), (96, (20, 50)), (576, (130, 600))])
def test_product_with_an_adapter_in_the_last_columns(rng, D, parts, narrow):
    """Each part of the columns has its own block of B, zeros beside it; a strip may lie in two of them."""
    B, T, last, rank, F = 2, 5, 3, 4, sum(parts)
    a_DR, b_RF = normal(rng, D, rank * len(parts)), np.zeros((rank * len(parts), F), np.float32)
    for part, begin in enumerate(np.cumsum([0, *parts[:-1]])):
        b_RF[rank * part : rank * (part + 1), begin : begin + parts[part]] = normal(rng, rank, parts[part])
    if narrow:
        a_DR, b_RF = (np.asarray(jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32)) for x in (a_DR, b_RF))
    x_BTD, w = normal(rng, B, T, D), cpu.pack(jnp.asarray(normal(rng, D, F)))
    low = cpu.pack_low(jnp.asarray(b_RF))
    assert low.strips.shape[1] == (rank if len(parts) == 1 or not np.any(np.array(parts) % 32) else 2 * rank)
    assert low.strips.dtype == (jnp.uint16 if narrow else jnp.float32)
    adapted = dataclasses.replace(w, adapter=cpu.Adapter(cpu.pack(jnp.asarray(a_DR)), low, last))
    own_BTF, whole_BTF = np.asarray(cpu.product(x_BTD, w)), np.asarray(cpu.product(x_BTD, adapted))
    np.testing.assert_array_equal(whole_BTF[:, :-last], own_BTF[:, :-last])
    by_two_BTF = cpu.product(cpu.product(x_BTD, cpu.pack(jnp.asarray(a_DR))), cpu.pack(jnp.asarray(b_RF)))
    np.testing.assert_array_equal(whole_BTF[:, -last:], (own_BTF + by_two_BTF)[:, -last:])
    few = dataclasses.replace(adapted, adapter=dataclasses.replace(adapted.adapter, last=7))  # all that there are
    np.testing.assert_array_equal(cpu.product(x_BTD[:, -last:], few), whole_BTF[:, -last:])
    wanted_BT = rng.random((B, T)) < 0.5
    some_BTF = cpu.product(x_BTD, dataclasses.replace(adapted, wanted_BT=jnp.asarray(wanted_BT)))
    np.testing.assert_array_equal(some_BTF, np.where(wanted_BT[..., None], whole_BTF, 0))


def test_an_adapter_that_adds_nothing(rng):
    x_BTD, w, a = normal(rng, 2, 3, 40), cpu.pack(jnp.asarray(normal(rng, 40, 50))), normal(rng, 40, 4)
    adapter = cpu.Adapter(cpu.pack(jnp.asarray(a)), cpu.pack_low(jnp.zeros((4, 50))), 2)
    np.testing.assert_array_equal(cpu.product(x_BTD, dataclasses.replace(w, adapter=adapter)), cpu.product(x_BTD, w))


@pytest.mark.parametrize(
    "B, T, N, K, S, H", [(2, 5, 4, 2, 37, 8), (3, 8, 6, 2, 50, 48), (1, 3, 3, 3, 70, 80), (2, 2, 2, 2, 3, 7)]
)
def test_attention_sees_its_visible_columns_alone(rng, B, T, N, K, S, H):
    q_BTNH, k_BKSH, v_BKSH = normal(rng, B, T, N, H), normal(rng, B, K, S, H), normal(rng, B, K, S, H)
    mask_BTS = rng.random((B, T, S)) < 0.5
    mask_BTS[..., rng.integers(S)] = True
    whole = np.asarray(cpu.attend(q_BTNH, k_BKSH, v_BKSH, mask_BTS))
    reference = attend_cached(*map(jnp.asarray, (q_BTNH, k_BKSH, v_BKSH, mask_BTS)))
    np.testing.assert_allclose(whole, reference, rtol=1e-5, atol=2e-6)
    for t in range(T):
        alone = cpu.attend(q_BTNH[-1:, t : t + 1], k_BKSH[-1:], v_BKSH[-1:], mask_BTS[-1:, t : t + 1])
        np.testing.assert_array_equal(alone, whole[-1:, t : t + 1])
    beside = lambda x: np.pad(x, ((0, 0), (0, 0), (5, 3), (0, 0)), constant_values=np.nan)  # noqa: E731
    padded_BTS = np.pad(mask_BTS, ((0, 0), (0, 0), (5, 3)))
    np.testing.assert_array_equal(cpu.attend(q_BTNH, beside(k_BKSH), beside(v_BKSH), padded_BTS), whole)


@pytest.mark.parametrize("start", [4, np.array([0, 3, 9], np.int32)])  # 9 leaves too little room: moved, as XLA does
def test_cache_takes_new_columns_as_xla_does(rng, start):
    caches, new = [normal(rng, 3, 2, 10, 8) for _ in range(2)], [normal(rng, 3, 4, 2, 8) for _ in range(2)]
    for where_BT in (None, rng.random((3, 4)) < 0.5):
        ours, theirs = (write(*map(jnp.asarray, caches + new), start, where_BT) for write in (cpu.write, Xla().write))
        for cache, expected in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(cache, expected)


@pytest.mark.parametrize(
    "B, T, N, K, P, G, H", [(2, 5, 4, 2, 16, 3, 8), (3, 8, 6, 2, 48, 2, 48), (2, 2, 2, 2, 32, 5, 7)]
)
def test_pages_have_the_bits_of_a_plain_cache(rng, B, T, N, K, P, G, H):
    """Attention and the update, whatever the tables, some pages in common; nothing that no table names is touched."""
    table_BG = np.stack([rng.permutation(3 * G)[:G] for _ in range(B)]).astype(np.int32)
    table_BG[:, 0] = table_BG[0, 0]  # rows that begin alike
    table_BG[1:, 0] = np.where((table_BG[1:, 1:] == table_BG[0, 0]).any(1), -1, table_BG[1:, 0])
    table_BG[-1, -1] = -1
    k_YKPH, v_YKPH = normal(rng, 3 * G, K, P, H), normal(rng, 3 * G, K, P, H)
    S, plain = G * P, lambda x_YKPH: x_YKPH[table_BG].swapaxes(1, 2).reshape(B, K, G * P, H)  # noqa: E731
    there_BS = np.repeat(table_BG >= 0, P, axis=1)
    q_BTNH, mask_BTS = normal(rng, B, T, N, H), (rng.random((B, T, S)) < rng.choice([0.05, 0.5, 1])) & there_BS[:, None]
    paged = cpu.attend(q_BTNH, k_YKPH, v_YKPH, mask_BTS, table_BG)
    np.testing.assert_array_equal(paged, cpu.attend(q_BTNH, plain(k_YKPH), plain(v_YKPH), mask_BTS))

    own_BG = rng.permutation(3 * G)[: B * G].reshape(B, G).astype(np.int32)
    own_BG[-1, -1] = -1
    new = normal(rng, B, T, K, H), normal(rng, B, T, K, H)
    start_B = rng.integers(0, S - T + 3, B).astype(np.int32)
    for where_BT in (None, rng.random((B, T)) < 0.5):
        written = cpu.write(*map(jnp.asarray, (k_YKPH, v_YKPH, *new)), start_B, where_BT, own_BG)
        for cache_YKPH, before_YKPH, new_BTKH in zip(written, (k_YKPH, v_YKPH), new, strict=True):
            expected_YKPH = before_YKPH.copy()
            for b, t in np.ndindex(B, T):
                column = min(start_B[b], S - T) + t
                if own_BG[b, column // P] >= 0 and (where_BT is None or where_BT[b, t]):
                    expected_YKPH[own_BG[b, column // P], :, column % P] = new_BTKH[b, t]
            np.testing.assert_array_equal(cache_YKPH, expected_YKPH)


@pytest.mark.parametrize("D", [1, 8, 37, 576])
def test_norm_of_a_row_is_the_rows_own(rng, D):
    x_BTD, scale_D = normal(rng, 3, 5, D), normal(rng, D)
    whole_BTD = cpu.rms_norm(jnp.asarray(x_BTD), cpu.Scale(jnp.asarray(scale_D)), 1e-5)
    np.testing.assert_allclose(whole_BTD, rms_norm(jnp.asarray(x_BTD), jnp.asarray(scale_D), 1e-5), rtol=1e-5)
    alone_11D = cpu.rms_norm(jnp.asarray(x_BTD[1:2, 3:4]), cpu.Scale(jnp.asarray(scale_D)), 1e-5)
    np.testing.assert_array_equal(alone_11D, whole_BTD[1:2, 3:4])


@pytest.mark.parametrize("instructions", ["avx2", "plain"])
def test_narrower_instructions_pass_as_well(instructions):
    """On a machine without AVX the two are one; elsewhere what other machines run is tested here too."""
    if "EDLM_CPU" in os.environ:
        return
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider"]
    command = [*pytest_, __file__, "-k", "1_to_64_rows or adapter or visible or pages or norm or name"]
    environment = os.environ | {"EDLM_CPU": instructions}
    ran = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0 and "passed" in ran.stdout, ran.stdout


def test_the_kernels_name_their_instructions():
    """Never wider ones than were asked for."""
    known = ["NEON", "no AVX", "AVX2", "AVX-512"]
    most = {"plain": "no AVX", "avx2": "AVX2"}.get(os.environ.get("EDLM_CPU", ""), "AVX-512")
    assert cpu.instructions() in known[: known.index(most) + 1]


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)
