"""Decoding's side of the model equals the model: fused projections, a head of its own, columns written as they come."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edlm_jax import load_pretrained
from edlm_jax.attention import Bidirectional, BlockCausal, Causal
from edlm_jax.attention.pattern import PromptThenBlock
from edlm_jax.models import ModelSpec, Transformer, backend
from edlm_jax.models.cache import DecodingWeights, KVCache, Rotary, forward_cached, prefill
from edlm_jax.models.layer import norm
from edlm_jax.parallel import cpu
from tests.conftest import TINY
from tests.seeds import fresh_rng

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_column_by_column_equals_the_whole_row(case, kernels, monkeypatch):
    if not kernels:
        monkeypatch.setattr(cpu, "available", lambda: False)
    model = load_pretrained(GOLDEN / case, "float32")
    for param in vars(model.layers).values():  # biases and norms that tell their places apart
        if hasattr(param, "shape"):
            param[...] = param[...] + 0.05 * fresh_rng().normal(size=param.shape)
    spec, weights = model.spec, DecodingWeights.of(model)
    B, S = 2, 9
    tokens_BT = fresh_rng().integers(0, spec.vocab_size, (B, S))
    rotary = Rotary.of(spec, S)
    cache, logits = KVCache.empty(spec, B, S), []
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        columns_T = jnp.arange(start, stop)
        mask_1TS = jnp.arange(S)[None, None] <= columns_T[None, :, None]
        starts = start if start == 4 else jnp.full(B, start)  # one for all rows, or one a row
        x_BTD, cache = forward_cached(
            weights, cache, tokens_BT[:, start:stop], rotary.at(columns_T[None]), starts, mask_1TS
        )
        logits.append(weights.logits(x_BTD))
    np.testing.assert_allclose(jnp.concatenate(logits, axis=1), model(tokens_BT), atol=2e-5, rtol=2e-4)


@pytest.mark.skipif(not cpu.available(), reason="this installation found no C++ compiler")
@pytest.mark.parametrize("width, heads, head_dim, ffn", [(32, 4, 8, 48), (96, 6, 20, 37), (576, 9, 64, 100)])
def test_a_columns_bits_are_its_own(width, heads, head_dim, ffn):
    """Alone, in a block, in any batch, behind any padding, prefilled or decoded (float32 on CPU)."""
    config = dict(hidden_size=width, num_attention_heads=heads, head_dim=head_dim, intermediate_size=ffn)
    config |= dict(num_key_value_heads=heads // 3 if heads % 3 == 0 else heads)
    model = Transformer(ModelSpec.from_hf(TINY | config), rngs=nnx.Rngs(0))
    for name in ("q_DNH", "k_DKH", "v_DKH", "o_NHD", "gate_DF", "up_DF", "down_FD"):  # scores that matter
        getattr(model.layers, name)[...] = getattr(model.layers, name)[...] * 5
    weights = DecodingWeights.of(model)
    rows, S = Rows(weights, np.random.default_rng(0).integers(0, 259, (5, 24))), 24
    alone = rows.logits([2], range(S + 1))
    for name, others in {
        "blocks": rows.logits([2], range(0, S + 1, 4)),
        "uneven blocks": rows.logits([2], [0, 5, 6, 13, S]),
        "one forward": rows.logits([2], [0, S]),
        "a batch": rows.logits([0, 1, 2, 3, 4], range(S + 1))[2:3],
        "two rows of two": rows.logits([1, 2], range(0, S + 1, 2))[1:],
        "blocks in a batch": rows.logits([0, 1, 2, 3, 4], range(0, S + 1, 8))[2:3],
        "padding": rows.logits([2], range(S + 1), before=5, after=3),
        "a prefill": rows.prefilled([2], before=0),
        "a padded prefill in a batch": rows.prefilled([1, 2], before=3)[1:],
    }.items():
        np.testing.assert_array_equal(others, alone, err_msg=name)


@pytest.mark.skipif(not cpu.available(), reason="this installation found no C++ compiler")
def test_columns_that_nobody_reads_take_no_part():
    """Of a wanted column the bits stay; the others go through all layers as they came."""
    model = Transformer(ModelSpec.from_hf(TINY), rngs=nnx.Rngs(0))
    spec, weights, (B, T, S) = model.spec, DecodingWeights.of(model), (4, 5, 12)
    tokens_BT = fresh_rng().integers(0, spec.vocab_size, (B, T))
    mask_BTS = jnp.arange(S)[None, None] <= 3 + jnp.arange(T)[None, :, None] + jnp.zeros((B, 1, 1), int)
    wanted_BT = np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)  # first ones first
    rotary_BT = Rotary.of(spec, S).at(3 + jnp.arange(T)[None])
    run = jax.jit(lambda wanted_BT: forward_cached(
        weights, KVCache.empty(spec, B, S), tokens_BT, rotary_BT, 3, mask_BTS, wanted_BT=wanted_BT
    )[0])  # fmt: skip
    whole_BTD, some_BTD = np.array(run(np.ones_like(wanted_BT))), np.array(run(wanted_BT))
    np.testing.assert_array_equal(some_BTD[wanted_BT], whole_BTD[wanted_BT])
    as_they_came_BTD = norm(spec, weights.embed(tokens_BT), weights.final_norm_D)
    np.testing.assert_array_equal(some_BTD[~wanted_BT], np.array(as_they_came_BTD)[~wanted_BT])


@pytest.mark.skipif(not cpu.available(), reason="this installation found no C++ compiler")
@pytest.mark.parametrize("pattern", [Causal(), BlockCausal(4), Bidirectional(), PromptThenBlock(32, BlockCausal(4))])
def test_a_long_prompt_is_prefilled_in_parts_with_the_same_bits(pattern, monkeypatch):
    B, T, N, K, H = 2, 37, 6, 3, 5
    spec = ModelSpec.from_hf(TINY)
    q, k, v = (jnp.asarray(fresh_rng().normal(size=(B, T, heads, H)), jnp.float32) for heads in (N, K, K))
    segments_BT = (np.arange(T) >= np.array([[3], [0]])).astype(np.int32)
    run = lambda q, k, v: backend.CpuKernels().attend_prompt(spec, pattern, jnp.asarray(segments_BT))(q, k, v)  # noqa: E731
    whole = run(q, k, v)
    monkeypatch.setattr(backend, "_QUERIES", 8)
    np.testing.assert_array_equal(run(q, k, v), whole)
    assert f"{T},{T}]" not in str(jax.make_jaxpr(run)(q, k, v))  # nothing has the prompt's length squared
    mask_BTT = pattern.dense(T, T)[None] & (segments_BT[:, :, None] == segments_BT[:, None])
    scores = np.einsum("btkgh,bskh->btkgs", q.reshape(B, T, K, N // K, H), k) * H**-0.5
    scores = np.where(mask_BTT[:, :, None, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("btkgs,bskh->btkgh", weights / weights.sum(-1, keepdims=True), v).reshape(B, T, N, H)
    np.testing.assert_allclose(whole, expected, atol=1e-5)


@dataclass
class Rows:
    weights: DecodingWeights
    tokens_BS: np.ndarray

    def logits(self, rows, cuts, before=0, after=0):
        """[rows, S, V], forwarded from cut to cut against the cache, behind and before columns that are not seen."""
        spec, (B, S), out = self.weights.spec, (len(rows), self.tokens_BS.shape[1]), []
        length = before + S + after
        rotary, cache, columns_S = Rotary.of(spec, S), KVCache.empty(spec, B, length), np.arange(length)
        for start, stop in itertools.pairwise(cuts):
            at_T = np.arange(start, stop)
            mask_TS = (columns_S <= at_T[:, None] + before) & (columns_S >= before)
            mask_BTS = np.broadcast_to(mask_TS, (B, *mask_TS.shape))
            new_BT, start_B = self.tokens_BS[rows, start:stop], np.full(B, start + before, np.int32)
            logits, cache = forward_and_read(self.weights, cache, new_BT, rotary.at(at_T[None]), start_B, mask_BTS)
            out.append(logits)
        return np.concatenate(out, axis=1)

    def prefilled(self, rows, before):
        """The same in one prefill of rows behind padding."""
        tokens_BT = np.pad(self.tokens_BS[rows], ((0, 0), (before, 0)))
        B, T = tokens_BT.shape
        segments_BT = np.broadcast_to(np.arange(T) >= before, (B, T)).astype(np.int32)
        rotary_BT = Rotary.of(self.weights.spec, T).at(np.maximum(np.arange(T) - before, 0)[None])
        return np.asarray(prefill_and_read(self.weights, tokens_BT, rotary_BT, segments_BT))[:, before:]


@jax.jit
def forward_and_read(weights, *forward):
    x_BTD, cache = forward_cached(weights, *forward)
    return weights.logits(x_BTD), cache


@jax.jit
def prefill_and_read(weights, tokens_BT, rotary_BT, segments_BT):
    T = tokens_BT.shape[1]
    return weights.logits(prefill(weights, tokens_BT, rotary_BT, Causal(), segments_BT, keep=T, length=T)[0])
