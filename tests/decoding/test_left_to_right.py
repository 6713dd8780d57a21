"""MARS and both self-speculations against their definitions in plain Python: the same tokens from the same forwards."""

import dataclasses

import numpy as np
import pytest

from edlm_jax.decoding import Decoder, generate
from edlm_jax.errors import InputError
from tests.decoding import dense
from tests.decoding.tiny import EOS, MASK, VOCAB, make_model, prompts
from tests.seeds import fresh_rng

SPECULATIVE = {"self_speculation": 2, "quadratic_speculation": 1}  # forwards a cycle


def mars(weights, prompt, *, C, threshold, limit, shifted, columns=None):
    """(new tokens, the forward that settled each): C masks after what is settled, accepted from the left.

    Of so many columns the tokens that the last forward settled take theirs; the first mask's may be one of them.
    """
    tokens, at = list(prompt), []
    while True:
        row = tokens + [MASK] * C
        p_TV = dense.probabilities(dense.predict(weights, row, dense.causal(len(row)), MASK))
        forward, first = max(at, default=0) + 1, len(tokens) - shifted
        most = min(C, columns - at.count(forward - 1) + shifted) if columns and at else C
        for index, p_V in enumerate(p_TV[first : first + most]):
            if index and (p_V.max() < threshold or threshold >= 1):
                break
            tokens.append(int(p_V.argmax()))
            at.append(forward)
            if tokens[-1] == EOS or len(at) == limit:
                return tokens[len(prompt) :], at


def speculative(weights, prompt, *, C, limit, shifted, mode):
    """(new tokens, the forward that settled each): AR decides every token, drafts decide in which forward."""
    tokens = greedy(weights, prompt, limit)
    at = [1]
    while len(at) < len(tokens):
        # Linear drafts follow the last known token, in its block; quadratic ones follow the token before it.
        behind = mode == "quadratic_speculation"
        known = prompt + tokens[: len(at) - behind]
        row = known + [MASK] * (C - 1 + behind)
        logits_TV = dense.predict(weights, row, dense.causal(len(row), len(known) - 1 + behind), MASK)
        first = len(known) - shifted + behind
        drafts = logits_TV[first : first + C - 1].argmax(-1).tolist()
        wanted = tokens[len(at) :]
        right = next((i for i, (a, b) in enumerate(zip(drafts, wanted, strict=False)) if a != b), C - 1)
        at += [at[-1] + SPECULATIVE[mode]] * min(right + 1, len(wanted))
    return tokens, at


def say_little(model):
    """Leaves the model few tokens to choose from: many drafts are right then, by chance."""
    scale_V = np.zeros(VOCAB, np.float32)
    scale_V[[0, 1, 2, 3, EOS]] = 1, 1, 1, 1, 0.2
    model.head_DV[...] = model.head_DV[...] * scale_V[None]


def greedy(weights, prompt, limit):
    tokens = list(prompt)
    while len(tokens) < len(prompt) + limit and (len(tokens) == len(prompt) or tokens[-1] != EOS):
        tokens.append(int(dense.predict(weights, tokens, dense.causal(len(tokens)), MASK)[-1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("alignment", ["same_position", "shifted"])
@pytest.mark.parametrize("mode", ["mars", *SPECULATIVE])
def test_modes_equal_their_oracles(mode, alignment):
    rng, shifted = fresh_rng(), alignment == "shifted"
    for C in (3, 1) if shifted else (4,):
        model = make_model(alignment, seed=int(rng.integers(1000)))
        if mode != "mars":
            say_little(model)
        decoder, given = Decoder(model), prompts(rng, [1, 6, *rng.integers(1, 17, 8)])
        settings = dict(max_new_tokens=13, block_length=C, threshold=0.4, eos_id=EOS, mode=mode)
        result, settled = generate(decoder, given, **settings), 0
        for row, prompt in enumerate(given):
            shape = dict(C=C, limit=13, shifted=shifted)
            shape |= dict(threshold=0.4) if mode == "mars" else dict(mode=mode)
            tokens, at = (mars if mode == "mars" else speculative)(decoder.weights, prompt, **shape)
            assert result.tokens[row] == tokens
            assert result.accepted_at[row] == at and result.row_denoise_forwards[row] == at[-1]
            settled += len(at)
        assert result.commit_forwards == 0
        if C > 1:
            assert result.denoise_forwards < settled * SPECULATIVE.get(mode, 1)


@pytest.mark.parametrize("alignment", ["same_position", "shifted"])
def test_in_a_smaller_window_mars_settles_fewer_tokens(alignment):
    rng, shifted, C = fresh_rng(), alignment == "shifted", 4
    model = make_model(alignment, seed=int(rng.integers(1000)))
    decoder, given = Decoder(model), prompts(rng, [1, 6, *rng.integers(1, 17, 6)])
    settings, whole = dict(max_new_tokens=13, eos_id=EOS), 2 * C - shifted
    forwards = []
    for columns in (C + 1 - shifted, C + 2, whole):
        result = generate(decoder, given, mode=f"mars:threshold=0.2,window={columns}", **settings)
        for row, prompt in enumerate(given):
            shape = dict(C=C, threshold=0.2, limit=13, shifted=shifted, columns=columns)
            assert (result.tokens[row], result.accepted_at[row]) == mars(decoder.weights, prompt, **shape)
        forwards.append(result.denoise_forwards)
    assert forwards[0] > forwards[2] and result == generate(decoder, given, mode="mars:threshold=0.2", **settings)
    for columns in (C - shifted, whole + 1):
        with pytest.raises(InputError, match=rf"window must lie in \[{C + 1 - shifted}, {whole}\], not {columns}"):
            generate(decoder, given, mode=f"mars:window={columns}", **settings)


@pytest.mark.parametrize(("mode", "drafts"), [("self_speculation", (1, 15)), ("quadratic_speculation", (2,))])
def test_any_number_of_drafts_gives_the_tokens_of_ar(mode, drafts):
    rng = fresh_rng()
    model = make_model("shifted", seed=int(rng.integers(1000)))
    say_little(model)
    decoder, given = Decoder(model), prompts(rng, [3, 12, 7])
    settings = dict(max_new_tokens=23)  # without an end: rows of a few tokens may have no draft that is right
    ar = generate(decoder, given, mode="ar", **settings)
    for D in drafts:
        found = generate(decoder, given, mode=f"{mode}:drafts={D}", **settings)
        assert found.tokens == ar.tokens and found.accepted_at != ar.accepted_at
        for at in found.accepted_at:
            assert max(np.bincount(at)) <= D + 1


def test_a_model_with_causal_blocks_decodes_as_mars_unless_told_otherwise():
    model, asked = make_model("shifted"), prompts(fresh_rng(), [5, 9])
    model.spec = dataclasses.replace(
        model.spec, conversion=dataclasses.replace(model.spec.conversion, pattern="causal_block", prefill="causal")
    )
    own = Decoder(model)(asked, limit=14)
    assert own == generate(model, asked, max_new_tokens=14, mode="mars")
    assert own != generate(model, asked, max_new_tokens=14, mode="diffusion")


def test_mars_at_threshold_one_is_ar():
    rng = fresh_rng()
    decoder, given = Decoder(make_model("shifted", scale=3000.0)), prompts(rng, [3, 9])
    mars, ar = (generate(decoder, given, max_new_tokens=10, threshold=1.0, mode=mode) for mode in ("mars", "ar"))
    assert mars == ar


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (dict(mode="quadratic_speculation:drafts=-1"), "drafts must not be negative"),
        (dict(mode="quadratic_speculation:drafts=2,ahead=3"), "ahead must be 0 to drafts=2, not 3"),
        (dict(mode="quadratic_speculation:lookup=-1"), "lookup must not be negative"),
        (dict(mode="self_speculation:drafts=two"), "drafts of self_speculation must be a whole number"),
        (dict(mode="mars", rule="fixed:2"), "mars has no rule"),
        (dict(mode="self_speculation", rule="fixed:2"), "self_speculation has no rule"),
        (dict(mode="ar", rule="fixed:2"), "ar has no rule"),
        (dict(mode="mars", threshold=1.5), "threshold must lie"),
    ],
)
def test_what_a_mode_cannot_do_is_refused(settings, reason):
    with pytest.raises(InputError, match=reason):
        generate(make_model(), [[1, 2]], max_new_tokens=4, **settings)
