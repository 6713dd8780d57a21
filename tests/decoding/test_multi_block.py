"""Several blocks in flight against their definition in plain Python: the same tokens from the same forwards."""

import dataclasses
import itertools

import numpy as np
import pytest

from edlm_jax.decoding import Decoder, generate
from edlm_jax.errors import InputError
from tests.decoding import dense
from tests.decoding.oracle import PrefilledBlocks
from tests.decoding.tiny import EOS, MASK, make_model, prompts
from tests.seeds import fresh_rng

C, LIMIT = 4, 14


def decode(weights, prompt, given, *, prefill, shifted, threshold, blocks, opens, anywhere=False):
    """(new tokens, the forward of each, forwards, the most blocks that were active) of one row, without a cache."""
    start = len(prompt)
    row, at, active, forwards, most = [*prompt, *given] + [MASK] * (C - len(given)), {}, [start], 0, 1
    while True:
        forwards += 1
        mask_TT = PrefilledBlocks(len(prompt), C, prefill).dense(len(row), len(row))
        p_TV = dense.probabilities(dense.predict(weights, row, mask_TT, MASK))
        before, row = row, list(row)
        for first in active:
            masked = [i for i in range(first, first + C) if before[i] == MASK]
            p = {i: p_TV[i - shifted].max() for i in masked}
            sure = {i for i in masked if p[i] >= threshold and threshold < 1}
            there = sum(before[i] != MASK for i in range(first - C, first))
            if masked and (first == active[0] or there > 0.9 * C):
                sure.add(max(masked, key=lambda i: (p[i], -i)))
            elif not anywhere:
                sure = set(itertools.takewhile(sure.__contains__, masked))
            for i in sure:
                row[i], at[i] = int(p_TV[i - shifted].argmax()), forwards
        new = row[start + len(given) :]
        settled = (new[: new.index(MASK)] if MASK in new else new)[:LIMIT]
        if EOS in settled:
            settled = settled[: settled.index(EOS) + 1]
        if EOS in settled or len(settled) == LIMIT:
            return settled, [at[start + len(given) + i] for i in range(len(settled))], forwards, most
        if MASK not in row[active[0] : active[0] + C]:  # it is committed in the next forward, which has one block more
            active = active[1:]
            if not active:
                active = [len(row)]
                row += [MASK] * C
        if len(active) < blocks and sum(token != MASK for token in row[active[-1] : active[-1] + C]) > opens * C:
            active.append(len(row))
            row += [MASK] * C
        most = max(most, len(active))


SETTINGS = [
    (dict(threshold=0.5, blocks=2, opens=0.25), "same_position", "block_causal", "response"),
    (dict(threshold=0.6, blocks=3, opens=0.0), "shifted", "causal", "position"),
    (dict(threshold=0.6, blocks=3, opens=0.0, anywhere=True), "same_position", "causal", "response"),
    (dict(threshold=0.8, blocks=4, opens=0.5), "same_position", "bidirectional", "position"),
    (dict(threshold=1.0, blocks=2, opens=0.1), "shifted", "block_causal", "response"),
]


@pytest.mark.parametrize(("settings", "alignment", "prefill", "grid"), SETTINGS)
def test_tokens_and_forwards_equal_the_oracle(settings, alignment, prefill, grid):
    rng, most = fresh_rng(), 0
    model = make_model(alignment, prefill, seed=int(rng.integers(1000)))
    model.spec = dataclasses.replace(model.spec, conversion=dataclasses.replace(model.spec.conversion, grid=grid))
    decoder = Decoder(model)
    mode = "multi_block:" + ",".join(f"{name}={value}" for name, value in settings.items())
    for _ in range(3):
        asked = prompts(rng, [5, 8, 13])
        result = generate(decoder, asked, max_new_tokens=LIMIT, eos_id=EOS, mode=mode)
        for row, prompt in enumerate(asked):
            cut = len(prompt) // C * C if grid == "position" else len(prompt)
            given, how = prompt[cut:], dict(prefill=prefill, shifted=alignment == "shifted")
            tokens, at, forwards, active = decode(decoder.weights, prompt[:cut], given, **how, **settings)
            assert result.tokens[row] == tokens
            assert (result.row_denoise_forwards[row], result.accepted_at[row]) == (forwards, at)
            assert result.row_commit_forwards[row] == 0
            most = max(most, active)
    assert most > 1  # several were in flight


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("alignment", ["same_position", "shifted"])
def test_one_block_in_flight_is_diffusion(alignment, temperature):
    decoder, asked = Decoder(make_model(alignment)), prompts(fresh_rng(), [3, 9, 6])
    settings = dict(max_new_tokens=LIMIT, eos_id=EOS, temperature=temperature, seed=3)
    diffusion = generate(decoder, asked, mode="diffusion:threshold=0.4", **settings)
    assert generate(decoder, asked, mode="multi_block:threshold=0.4,blocks=1", **settings) == diffusion


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("multi_block:blocks=0", "blocks must be positive"),
        ("multi_block:opens=1.5", r"opens must lie in \[0, 1\]"),
        ("multi_block:threshold=2", r"threshold must lie in \[0, 1\]"),
        ("multi_block:commit=separate", "commit=separate means nothing to multi_block"),
    ],
)
def test_what_cannot_be_done_is_refused(mode, reason):
    with pytest.raises(InputError, match=reason):
        generate(make_model(), [np.arange(3).tolist()], max_new_tokens=4, mode=mode)
