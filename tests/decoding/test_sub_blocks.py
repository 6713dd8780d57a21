"""Sub-blocks and their dual cache against plain Python."""

import dataclasses
from functools import partial

import pytest

from edlm_jax.decoding import Decoder, generate
from edlm_jax.errors import InputError
from tests.decoding import dense
from tests.decoding.oracle import PrefilledBlocks
from tests.decoding.tiny import EOS, MASK, make_model, prompts
from tests.seeds import fresh_rng

C, U, LIMIT, THRESHOLD = 6, 3, 14, 0.8


def decode(weights, prompt, given, *, shifted, prefill, dual_cache):
    """(new tokens, denoising forwards, how many of them were of a sub-block alone)."""
    columns, tokens, forwards, narrow = dense.Columns(weights, MASK), list(prompt), 0, 0
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
    rng, shifted = fresh_rng(), alignment == "shifted"
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
    rng = fresh_rng()
    decoder, given = Decoder(make_model("shifted")), prompts(rng, [2, 11, 6, 9, 4])
    settings = dict(max_new_tokens=16, block_length=8, sub_block_length=4, dual_cache=True, threshold=0.95)
    decode = partial(generate, decoder, temperature=0.7, **settings)
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
