"""Prompt lookup gives greedy AR's tokens in as many forwards as a plain-Python count of right drafts says."""

import warnings

import pytest

from edlm_jax.decoding import Decoder, generate, parse_mode
from edlm_jax.errors import InputError
from tests.decoding.tiny import make_model, prompts
from tests.seeds import fresh_rng

LIMIT = 24


def looked_up(row, lookup, drafts):
    """What followed the last tokens at their latest earlier place, filled up with 0; None where there is none."""
    last = row[-lookup:]
    places = [p for p in range(len(row) - lookup) if len(last) == lookup and row[p : p + lookup] == last]
    guess = row[places[-1] + lookup :][:drafts] if places else []
    return guess + [0] * (drafts - len(guess)) if places else None


def count_forwards(prompt, answer, drafts, lookup):
    """The prefill gives a token; a forward gives the right drafts and one more."""
    row, forwards, end = list(prompt) + answer[:1], 1, len(prompt) + len(answer)
    full = list(prompt) + answer
    while len(row) < end:
        guess, right = looked_up(row, lookup, drafts) or [], 0
        while right < len(guess) and len(row) + right < end and guess[right] == full[len(row) + right]:
            right += 1
        row, forwards = full[: min(len(row) + right + 1, end)], forwards + 1
    return forwards


@pytest.mark.parametrize("options", ["", ":drafts=1", ":drafts=5,lookup=1", ":lookup=3"])
def test_tokens_are_those_of_ar_and_forwards_those_of_the_right_drafts(options):
    warnings.simplefilter("ignore")
    rng = fresh_rng()
    decoder, mode = Decoder(make_model("shifted", seed=int(rng.integers(1000)))), parse_mode("prompt_lookup" + options)
    given = prompts(rng, [3, 17, 8])
    given += [given[0] * 5]  # what repeats itself
    ar = generate(decoder, given, max_new_tokens=LIMIT, mode="ar")
    found = generate(decoder, given, max_new_tokens=LIMIT, mode=mode)
    assert found.tokens == ar.tokens
    pairs = zip(given, ar.tokens, strict=True)
    assert found.row_denoise_forwards == [count_forwards(p, a, mode.drafts, mode.lookup) for p, a in pairs]
    watched = generate(decoder, given, max_new_tokens=LIMIT, mode=mode, on_block=lambda tokens: None)
    assert watched == found
    assert generate(decoder, given[1:2], max_new_tokens=LIMIT, mode=mode).tokens == found.tokens[1:2]
    ends = [ar.tokens[0][4]]
    ended = [generate(decoder, given, max_new_tokens=LIMIT, mode=m, eos_id=ends).tokens for m in ("ar", mode)]
    assert ended[0] == ended[1]


def test_a_model_that_was_never_converted_is_sped_up_too():
    model = make_model("shifted")
    model.spec = type(model.spec)(**{**vars(model.spec), "conversion": None})
    given = [[5, 6, 7, 5, 6, 7, 5, 6]]
    results = [generate(model, given, max_new_tokens=8, mode=mode).tokens for mode in ("ar", "prompt_lookup")]
    assert results[0] == results[1]


@pytest.mark.filterwarnings("ignore:.*reads next tokens")
@pytest.mark.parametrize("mode", ["prompt_lookup:lookup=60", "self_speculation:lookup=60"])
def test_more_tokens_than_a_row_has_are_found_nowhere(mode):
    model, given = make_model("shifted"), [[5, 6, 5, 6]]
    results = [generate(model, given, max_new_tokens=5, mode=mode).tokens for mode in ("ar", mode)]
    assert results[0] == results[1]


def test_bad_options_are_refused():
    for text, reason in (("prompt_lookup:drafts=0", "must be positive"), ("prompt_lookup:depth=2", "its options are")):
        with pytest.raises(InputError, match=reason):
            generate(make_model(), [[1, 2]], max_new_tokens=3, mode=text)
