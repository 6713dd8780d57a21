"""Sub-blocks and their dual cache against plain Python, in which the cache is a list of what each column last was."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edlm_jax.decoding import Decoder, generate
from edlm_jax.errors import InputError
from edlm_jax.models.cache import Rotary, forward
from tests.decoding import dense
from tests.decoding.oracle import PrefilledBlocks
from tests.decoding.tiny import EOS, MASK, make_model, prompts

C, U, LIMIT, THRESHOLD = 6, 3, 14, 0.8


class Columns:
    """Keys and values of a row's columns, layer by layer, as the last forward that wrote them left them."""

    def __init__(self, weights):
        spec = weights.spec
        shape = (spec.num_layers, 1, dense.LENGTH, spec.num_kv_heads, spec.head_dim)
        self.weights, self.k, self.v = weights, np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    def forward(self, tokens, mask_TT, columns):
        """Probabilities at all columns; only `columns` are computed anew, the others keep keys and values."""
        T = len(tokens)
        padded, mask = np.zeros((1, dense.LENGTH), np.int32), np.eye(dense.LENGTH, dtype=bool)
        padded[0, :T], mask[:T, :T] = tokens, mask_TT
        new_T = np.isin(np.arange(dense.LENGTH), columns)
        logits_TV, k, v = _forward(self.weights, padded, mask, new_T, self.k, self.v)
        self.k, self.v = np.array(k), np.array(v)
        logits_TV = np.array(logits_TV, np.float64)[:T]
        logits_TV[:, MASK] = -np.inf
        return dense.probabilities(logits_TV)


@jax.jit
def _forward(weights, tokens_1T, mask_TT, new_T, old_k, old_v):
    keys, values = [], []

    def attention(index, q, k, v):
        keys.append(jnp.where(new_T[None, :, None, None], k, old_k[index]))
        values.append(jnp.where(new_T[None, :, None, None], v, old_v[index]))
        groups = q.shape[2] // k.shape[2]
        k_BTNH, v_BTNH = (jnp.repeat(x[-1], groups, axis=2) for x in (keys, values))
        scores_BNTS = jnp.einsum("BTNH,BSNH->BNTS", q, k_BTNH) / np.sqrt(q.shape[-1])
        p_BNTS = jax.nn.softmax(jnp.where(mask_TT[None, None], scores_BNTS, -1e30), axis=-1)
        return jnp.einsum("BNTS,BSNH->BTNH", p_BNTS, v_BTNH)

    rotary = Rotary.of(weights.spec, dense.LENGTH).at(jnp.arange(dense.LENGTH)[None])
    return weights.logits(forward(weights, tokens_1T, rotary, attention))[0], jnp.stack(keys), jnp.stack(values)


def decode(weights, prompt, given, *, shifted, prefill, dual_cache):
    """(new tokens, denoising forwards, how many of them were of a sub-block alone)."""
    columns, tokens, forwards, narrow = Columns(weights), list(prompt), 0, 0
    while True:
        start, first = len(tokens), len(tokens) == len(prompt)
        tokens += ([*given] * first + [MASK] * C)[:C]
        mask_TT = PrefilledBlocks(len(prompt), C, prefill).dense(len(tokens), len(tokens))
        block = list(range(start, start + C))
        anew = list(range(len(tokens))) if first else list(range(start - C, start + C))  # the commit rides along
        known = columns.k.copy(), columns.v.copy()
        cached = not first
        while MASK in tokens[start:]:
            p_TV = columns.forward(tokens, mask_TT, anew)
            forwards, narrow = forwards + 1, narrow + (len(anew) == U)
            active = (tokens.index(MASK, start) - start) // U * U + start
            best = {i: p_TV[i - shifted].max() for i in range(active, active + U) if tokens[i] == MASK}
            for i, confidence in best.items():
                if confidence >= THRESHOLD or i == max(best, key=lambda j: (best[j], -j)):
                    tokens[i] = int(p_TV[i - shifted].argmax())
            new = tokens[len(prompt) + len(given) :][:LIMIT]
            settled = new[: new.index(MASK)] if MASK in new else new
            if EOS in settled or len(settled) == LIMIT:
                return settled[: settled.index(EOS) + 1] if EOS in settled else settled, forwards, narrow
            if first and anew[0] == 0:  # the prefill keeps the prompt alone
                columns.k[:, :, start:], columns.v[:, :, start:] = known[0][:, :, start:], known[1][:, :, start:]
            if MASK in tokens[start:]:
                active = (tokens.index(MASK, start) - start) // U * U + start
                whole = not dual_cache or not cached or tokens[active] == MASK
                anew, cached = block if whole else list(range(active, active + U)), True


@pytest.mark.parametrize("dual_cache", [False, True])
@pytest.mark.parametrize(
    ("alignment", "prefill", "grid", "commit"),
    [("same_position", "causal", "response", "separate"), ("shifted", "block_causal", "position", "fused")],
)
def test_sub_blocks_equal_the_oracle(dual_cache, alignment, prefill, grid, commit):
    rng, shifted = np.random.default_rng(), alignment == "shifted"
    model = make_model(alignment, prefill, seed=int(rng.integers(1000)))
    conversion = dataclasses.replace(model.spec.conversion, grid=grid, block_length=C)
    model.spec = dataclasses.replace(model.spec, conversion=conversion)
    decoder, alone = Decoder(model), 0
    settings = dict(max_new_tokens=LIMIT, threshold=THRESHOLD, eos_id=EOS, commit=commit)
    settings |= dict(sub_block_length=U, dual_cache=dual_cache)
    for _ in range(3):
        given = prompts(rng, [7, 12, 14])
        result = generate(decoder, given, **settings)
        for row, prompt in enumerate(given):
            cut = len(prompt) // C * C if grid == "position" else len(prompt)
            shape = dict(shifted=shifted, prefill=prefill, dual_cache=dual_cache)
            tokens, forwards, narrow = decode(decoder.weights, prompt[:cut], prompt[cut:], **shape)
            assert (result.tokens[row], result.row_denoise_forwards[row]) == (tokens, forwards)
            alone += narrow
    assert (alone > 0) == dual_cache


def test_a_row_alone_equals_the_row_in_a_batch():
    rng = np.random.default_rng()
    decoder, given = Decoder(make_model("shifted")), prompts(rng, [2, 11, 6, 9, 4])
    settings = dict(max_new_tokens=16, block_length=8, sub_block_length=4, dual_cache=True, threshold=0.95)
    decode = partial(decoder, temperature=0.7, **settings)
    batch = decode(given, seed=range(5, 10))  # some rows forward whole blocks while others need their sub-block alone
    for row, prompt in enumerate(given):
        alone = decode([prompt], seed=[5 + row])
        assert (alone.tokens[0], alone.accepted_at[0]) == (batch.tokens[row], batch.accepted_at[row])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (dict(sub_block_length=3), "3 must divide the block length 4"),
        (dict(sub_block_length=0), "must divide"),
        (dict(dual_cache=True), "needs sub_block_length"),
        (dict(mode="psd", sub_block_length=2), "psd has no sub_block_length"),
    ],
)
def test_bad_sub_blocks_are_refused(settings, reason):
    with pytest.raises(InputError, match=reason):
        generate(make_model(), [[1, 2]], max_new_tokens=4, **settings)
