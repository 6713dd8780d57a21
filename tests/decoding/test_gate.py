"""Adapters that are open on drafts alone: the text is the AR model's, the forwards those of a plain-Python drafter."""

import dataclasses
import functools
from unittest import mock

import jax
import numpy as np
import pytest

from edlm_jax.decoding import Decoder, Sampling, check_settings, generate, parse_mode
from edlm_jax.errors import InputError
from edlm_jax.evaluation.likelihood import log_likelihood
from edlm_jax.models.backend import Xla
from tests.decoding import dense
from tests.decoding.test_exact import DRAWS, ar_probabilities, count_texts, make_tiny, optimized, p_value  # noqa: F401
from tests.decoding.test_left_to_right import greedy, say_little
from tests.decoding.test_prompt_lookup import looked_up
from tests.decoding.tiny import EOS, MASK, VOCAB, make_model, prompts, with_gate
from tests.seeds import fresh_rng

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SEEDS = [5, 6, 7, 8]
PATTERNS = {  # what drafts were trained as: who sees whom, the column that predicts, what stands in unknown places
    "Uno": ("causal_block", "shifted", "uniform_tokens"),
    "masks": ("semi_block", "shifted", "masks"),
    "own places": ("semi_block", "same_position", "masks"),
    "own places, causal": ("causal_block", "same_position", "uniform_tokens"),
}


def make_gated(name, rng):
    pattern, alignment, noise = PATTERNS[name]
    model = make_model(alignment, seed=int(rng.integers(1000)))
    conversion = dataclasses.replace(model.spec.conversion, pattern=pattern, noise=noise)
    model.spec = dataclasses.replace(model.spec, conversion=conversion)
    say_little(model)
    return model, with_gate(model, rng)


def noise_of(seed, number, kind):
    """What stands in the place of a row's new token."""
    if kind == "masks":
        return MASK
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(np.uint32(seed)), number), 3)
    token = int(jax.random.randint(key, (), 0, VOCAB - 1))
    return token + (token >= MASK)


def drafted(weights, known, number, count, seed):
    """The best tokens after the one that follows `known`, which is the row's new token of this number."""
    conversion = weights.spec.conversion
    own = conversion.alignment == "same_position"
    causal = conversion.pattern == "causal_block"
    noise = count + (own or not causal)
    row = known + [noise_of(seed, number + i, conversion.noise) for i in range(noise)]
    mask_TT = dense.causal(len(row), None if causal else len(known))
    logits_TV = dense.predict(weights, row, mask_TT, MASK, drafts=noise)
    return logits_TV[len(known) + own :][:count].argmax(-1).tolist()


def count_forwards(weights, prompt, tokens, *, D, seed, quadratic, lookup=0, ahead=None):
    """The forward that settled each token, and how many there were."""
    at, forwards = [1], 1
    while len(at) < len(tokens):
        known = prompt + tokens[: len(at)]
        drafts = looked_up(known, lookup, D) if lookup else None
        if quadratic and drafts is None:
            drafts = drafted(weights, known[:-1], len(at) - 1, D if ahead is None else ahead, seed)
        elif not quadratic and drafts is None:
            forwards += 1
            drafts = drafted(weights, known, len(at), D, seed)
            at.append(forwards)  # the next token is AR's, read in the same forward
            if len(at) == len(tokens):
                break
        forwards += 1
        wanted = tokens[len(at) :]
        right = next((i for i, (a, b) in enumerate(zip(drafts, wanted, strict=False)) if a != b), len(drafts))
        at += [forwards] * min(right + 1, len(wanted))
    return at, forwards


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("mode", ["self_speculation:drafts=3", "quadratic_speculation:drafts=2"])
def test_text_and_forwards(name, mode):
    rng = fresh_rng()
    base, gated = make_gated(name, rng)
    decoder, given = Decoder(gated), prompts(rng, [1, 6, 11, 16])
    settings = dict(max_new_tokens=14, eos_id=EOS, mode=mode, seed=SEEDS)
    result = generate(decoder, given, **settings)
    ar = generate(base, given, **settings | dict(mode="ar"))
    assert result.tokens == ar.tokens == generate(decoder, given, **settings | dict(mode="ar")).tokens
    for row, prompt in enumerate(given):
        how = dict(D=parse_mode(mode).drafts, seed=SEEDS[row], quadratic="quadratic" in mode)
        at, forwards = count_forwards(decoder.weights, prompt, result.tokens[row], **how)
        assert (result.accepted_at[row], result.row_denoise_forwards[row]) == (at, forwards)
        alone = generate(decoder, [prompt], **settings | dict(seed=SEEDS[row : row + 1]))
        assert (alone.tokens[0], alone.accepted_at[0]) == (result.tokens[row], at)


@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize(
    "mode",
    [
        "self_speculation:drafts=2,lookup=1",
        "quadratic_speculation:drafts=3,ahead=1,lookup=1",
        "quadratic_speculation:drafts=5,ahead=4",  # too many columns for one product with the head
    ],
)
def test_what_was_looked_up_needs_no_draft(mode, temperature):
    rng = fresh_rng()
    base, gated = make_gated("Uno", rng)
    decoder, given = Decoder(gated), prompts(rng, [3, 7, 12, 9])
    given[1] = given[1] * 2
    settings = dict(max_new_tokens=14, temperature=temperature, seed=SEEDS, eos_id=EOS, mode=mode)
    result = generate(decoder, given, **settings)
    for row, prompt in enumerate(given):
        alone = generate(decoder, [prompt], **settings | dict(seed=SEEDS[row : row + 1]))
        assert (alone.tokens[0], alone.accepted_at[0]) == (result.tokens[row], result.accepted_at[row])
        if not temperature:
            own = vars(parse_mode(mode))
            how = dict(D=own["drafts"], seed=SEEDS[row], lookup=own["lookup"])
            how |= dict(quadratic="quadratic" in mode, ahead=own.get("ahead"))
            at, forwards = count_forwards(decoder.weights, prompt, result.tokens[row], **how)
            assert (result.accepted_at[row], result.row_denoise_forwards[row]) == (at, forwards)
    if not temperature:
        assert result.tokens == [greedy(decoder.weights, prompt, 14) for prompt in given]


@functools.cache
def tiny_gated():
    model = make_tiny("shifted")[1]
    conversion = dataclasses.replace(model.spec.conversion, pattern="causal_block", noise="uniform_tokens")
    gated = with_gate(model, np.random.default_rng(1))
    gated.spec = dataclasses.replace(model.spec, conversion=conversion)
    with mock.patch("edlm_jax.models.cache.choose", lambda model: Xla()):
        return Decoder(gated), model


@pytest.mark.parametrize(
    "options",
    [
        "self_speculation:drafts=2",
        "self_speculation:drafts=2,lookup=1",
        "quadratic_speculation:drafts=2,ahead=1,lookup=1",
    ],
)
def test_frequencies_are_the_base_models_own_probabilities(options, optimized):  # noqa: F811
    decoder, model = tiny_gated()
    counts, _ = count_texts(decoder, parse_mode(options), Sampling(0.8), DRAWS // 2)
    assert p_value(counts, ar_probabilities(model, Sampling(0.8))) > 0.001


def test_modes_that_verify_nothing_are_refused():
    _, gated = make_gated("Uno", fresh_rng())
    for mode in ("diffusion", "mars"):
        with pytest.raises(InputError, match=f"{mode} verifies no drafts.*use ar, self_speculation"):
            generate(gated, [[1, 2]], max_new_tokens=3, mode=mode)
        with pytest.raises(InputError, match=f"{mode} verifies no drafts"):  # before weights are read
            check_settings(gated.spec, parse_mode(mode), limit=3)


def test_a_model_that_only_drafts_is_the_ar_model_unless_told_otherwise():
    model, gated = make_gated("Uno", fresh_rng())
    assert Decoder(gated).completed(None).name == "self_speculation"
    assert Decoder(model).completed(None).name == "mars"
    pairs = [([1, 2, 3], [4, 5])]
    assert log_likelihood(gated, pairs) == log_likelihood(gated, pairs, mode="ar")
