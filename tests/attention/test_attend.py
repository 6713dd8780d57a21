"""Every fast path equals the dense reference, forward and backward, at odd sizes, with and without packed documents."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edlm_jax.attention import Bidirectional, BlockCausal, Causal, CleanContext, SlidingWindow, attend_dense
from edlm_jax.attention.reference import combine, partial_attention
from tests.attention.planned import attend
from tests.attention.test_triton import GROUPS, chosen_copies, dense
from tests.seeds import fresh_rng

CASES = [
    (Causal(), 37),
    (BlockCausal(5), 43),
    (BlockCausal(3), 300),  # several chunks, the last one short
    (Bidirectional(), 19),
    (CleanContext(12, 4), 24),
    (CleanContext(13, 4, "token_causal"), 26),
    (CleanContext(300, 7), 600),
    (CleanContext(150, 1, "token_causal"), 300),
    (CleanContext(12, 4, noisy_length=24), 36),  # two views
    (CleanContext(60, 5, "token_causal", noisy_length=150), 210),  # two and a half: a chunk spans two of them
    (CleanContext(20, 4, noisy_length=8), 28),
    (CleanContext(13, 4, "token_causal", noisy="causal"), 26),
    (CleanContext(300, 6, noisy="causal"), 600),
    (SlidingWindow(Causal(), 1), 21),
    (SlidingWindow(BlockCausal(5), 140), 300),
    (SlidingWindow(Bidirectional(), 6), 19),
    (SlidingWindow(CleanContext(300, 6, "token_causal"), 50), 600),
    (SlidingWindow(CleanContext(40, 8), 3), 80),  # within a block
    (SlidingWindow(CleanContext(60, 5, noisy_length=150), 22), 210),
    (CleanContext(61, 5, group=3), 122),  # a last group of a block and a token
    (CleanContext(300, 7, "token_causal", group=4), 600),
    (CleanContext(60, 5, noisy_length=150, group=2), 210),
    (SlidingWindow(CleanContext(60, 5, group=4), 13), 120),
]


def random_inputs(seed, length, *, N=4, K=2, H=8, B=2):
    keys = jax.random.split(jax.random.key(seed), 3)
    return tuple(jax.random.normal(key, (B, length, heads, H)) for key, heads in zip(keys, (N, K, K), strict=True))


def random_segments(rng, pattern, length, B=2):
    """Sorted document ids with padding (0) in front, the same on both streams."""
    columns = pattern.positions(length)
    return np.sort(rng.integers(0, 4, (B, columns.max() + 1)), axis=1).astype(np.int32)[:, columns]


def value_and_grad(function, pattern, inputs, segments, weight):
    def objective(inputs):
        out = function(*inputs, pattern=pattern, q_segments_BT=segments, k_segments_BS=segments)
        return (out * weight).sum(), out

    return jax.jit(jax.value_and_grad(objective, has_aux=True))(inputs)


@pytest.mark.parametrize(("pattern", "length"), CASES)
@pytest.mark.parametrize("packed", [False, True])
def test_attend_equals_the_dense_reference(pattern, length, packed):
    rng = fresh_rng()
    inputs = random_inputs(int(rng.integers(2**31)), length)
    segments = random_segments(rng, pattern, length) if packed else None
    weight = jnp.asarray(rng.normal(size=inputs[0].shape), jnp.float32)
    (_, fast), fast_grads = value_and_grad(attend, pattern, inputs, segments, weight)
    (_, dense), dense_grads = value_and_grad(attend_dense, pattern, inputs, segments, weight)
    np.testing.assert_allclose(fast, dense, atol=2e-6, rtol=2e-5)
    for ours, reference in zip(fast_grads, dense_grads, strict=True):
        np.testing.assert_allclose(ours, reference, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("clean", "noisy"),
    [("block_causal", "bidirectional"), ("token_causal", "bidirectional"), ("block_causal", "causal")],
)
@pytest.mark.parametrize("window", [None, 3, 9])
def test_chosen_copies_attend_as_the_columns_that_they_copy(packed, clean, noisy, window):
    """In the row that has every block's copy once, a chosen copy is the same query over the same keys."""
    rng, L, C, B = fresh_rng(), 30, 5, 2
    blocks_BN = np.stack([rng.permutation(L // C)[:4] for _ in range(B)])
    copies_BM = (blocks_BN[..., None] * C + np.arange(C)).reshape(B, -1)
    M = copies_BM.shape[1]
    columns_BT = np.concatenate([copies_BM, np.tile(np.arange(L, 2 * L), (B, 1))], axis=1)
    whole = random_inputs(int(rng.integers(2**31)), 2 * L)
    chosen = [jnp.take_along_axis(x, columns_BT[:, :, None, None], axis=1) for x in whole]
    segments = random_segments(rng, CleanContext(L, C), 2 * L) if packed else None
    own = np.take_along_axis(segments, columns_BT, axis=1) if packed else None
    pattern = CleanContext(L, C, clean, noisy=noisy).within(window)
    expected = attend(*whole, pattern=pattern, q_segments_BT=segments, k_segments_BS=segments)
    for queries in (M + L, M):
        ours = attend(
            chosen[0][:, :queries],
            *chosen[1:],
            pattern=CleanContext(L, C, clean, noisy_length=M, noisy=noisy).within(window),
            q_segments_BT=own[:, :queries] if packed else None,
            k_segments_BS=own,
            copies_BM=jnp.asarray(copies_BM),
        )
        wanted = jnp.take_along_axis(expected, columns_BT[:, :queries, None, None], axis=1)
        np.testing.assert_allclose(ours, wanted, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize(("L", "C", "M", "clean", "noisy", "T", "window", "group"), GROUPS)
def test_groups_begin_at_any_block(L, C, M, clean, noisy, T, window, group):
    copies_BM, segments_BT, mask_BTS = chosen_copies(L, C, M, clean, noisy, window, group)
    inputs = random_inputs(int(fresh_rng().integers(2**31)), M + L)
    inputs = inputs[0][:, :T], *inputs[1:]
    pattern = CleanContext(L, C, clean, M, noisy, group).within(window)
    how = dict(pattern=pattern, q_segments_BT=segments_BT[:, :T], k_segments_BS=segments_BT)
    ours = attend(*inputs, **how, copies_BM=jnp.asarray(copies_BM))
    np.testing.assert_allclose(ours, dense(*inputs, mask_BTS=jnp.asarray(mask_BTS[:, :T])), atol=2e-6, rtol=2e-5)


def test_the_dense_reference_equals_a_loop():
    rng = fresh_rng()
    q, k, v = (np.asarray(x, np.float64) for x in random_inputs(int(rng.integers(2**31)), 10, B=1))
    pattern = CleanContext(5, 2)
    mask, out = pattern.dense(10, 10), np.zeros_like(q)
    for t in range(10):
        for n in range(4):
            scores = k[0, :, n // 2] @ q[0, t, n] / np.sqrt(8)
            weights = np.exp(scores) * mask[t]
            out[0, t, n] = weights @ v[0, :, n // 2] / weights.sum()
    ours = attend_dense(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), pattern=pattern)
    np.testing.assert_allclose(ours, out, atol=2e-6, rtol=2e-5)


def test_clean_context_never_forms_the_masked_three_quarters():
    L = 512
    inputs = random_inputs(0, 2 * L, B=1)
    hlo = jax.jit(partial(attend, pattern=CleanContext(L, 8))).lower(*inputs).as_text()
    dense = jax.jit(partial(attend_dense, pattern=CleanContext(L, 8))).lower(*inputs).as_text()
    assert f"{2 * L}x{2 * L}x" in dense  # the text does show such a tensor where there is one
    assert f"{2 * L}x{2 * L}x" not in hlo


def test_groups_of_keys_share_one_softmax():
    q, k, v = random_inputs(int(fresh_rng().integers(2**31)), 11)
    whole = attend_dense(q, k, v, pattern=Bidirectional())
    later = partial_attention(q, k[:, 4:], v[:, 4:], None)
    parts = combine([partial_attention(q, k[:, :4], v[:, :4], None), later], q)
    np.testing.assert_allclose(parts, whole, atol=2e-6, rtol=2e-5)
    hidden = combine([partial_attention(q, k[:, :4], v[:, :4], np.zeros((1, 1, 4), bool)), later], q)
    np.testing.assert_allclose(
        hidden, attend_dense(q, k[:, 4:], v[:, 4:], pattern=Bidirectional()), atol=2e-6, rtol=2e-5
    )


@pytest.mark.parametrize(("pattern", "length"), [(SlidingWindow(Bidirectional(), 30), 41), (Bidirectional(), 1100)])
def test_pairs_that_the_step_chooses(pattern, length):
    """Long rows, too, which tiles take otherwise."""
    rng = fresh_rng()
    q_BTNH, k_BSKH, v_BSKH = random_inputs(int(rng.integers(2**31)), length)
    seen_TS = (rng.random((length, length)) < 0.3) | np.eye(length, dtype=bool)
    segments = random_segments(rng, pattern, length)
    allowed_BTS = pattern.dense(length, length) & seen_TS & (segments[:, :, None] == segments[:, None])
    known = dict(q_segments_BT=segments, k_segments_BS=segments, seen_TS=jnp.asarray(seen_TS))
    out_BTNH = jax.jit(partial(attend, pattern=pattern))(q_BTNH, k_BSKH, v_BSKH, **known)
    k_BSNH, v_BSNH = (np.repeat(x, 2, axis=2) for x in (k_BSKH, v_BSKH))
    scores_BNTS = np.einsum("BTNH,BSNH->BNTS", q_BTNH, k_BSNH) * q_BTNH.shape[-1] ** -0.5
    weights_BNTS = np.exp(np.where(allowed_BTS[:, None], scores_BNTS, -np.inf))
    weights_BNTS /= weights_BNTS.sum(axis=-1, keepdims=True)
    expected_BTNH = np.einsum("BNTS,BSNH->BTNH", weights_BNTS, v_BSNH)
    np.testing.assert_allclose(out_BTNH, expected_BTNH, rtol=2e-4, atol=2e-5)
