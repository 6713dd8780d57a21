"""Stop strings in every mode: rows cut where their text says, nothing else changed, no forwards after it."""

import dataclasses

import numpy as np
import pytest

from edlm_jax.decoding import MODES, Decoder
from edlm_jax.decoding.generation import Generation
from edlm_jax.decoding.stopping import Reader
from edlm_jax.errors import InputError
from tests.decoding.tiny import EOS, VOCAB, make_model, prompts

LIMIT = 22


def letters(tokens):
    """Tokens of one to three letters: what is looked for lies across their borders."""
    return "".join("abcdefgh"[token % 8] * (1 + token % 3) for token in tokens)


@pytest.mark.parametrize("mode", MODES)
def test_rows_end_before_the_stop_string(mode):
    rng = np.random.default_rng()
    decoder, given, seen = Decoder(make_model("shifted", seed=int(rng.integers(1000)))), prompts(rng, [2, 11, 6]), []
    settings = dict(max_new_tokens=LIMIT, threshold=0.5, eos_id=EOS, mode=mode, detokenize=letters)
    free = decoder(given, on_block=seen.append, **settings)
    assert free.texts == [letters(tokens) for tokens in free.tokens]
    # Of the longest row, a string that lies across the border of two tokens in its first third.
    longest = max(range(3), key=lambda row: len(free.tokens[row]))
    border = len(letters(free.tokens[longest][: len(free.tokens[longest]) // 3]))
    stop = [free.texts[longest][border - 1 : border + 2], "never"]
    result = decoder(given, stop=stop, **settings)
    assert result.texts[longest] != free.texts[longest]
    for row in range(3):
        text, tokens = free.texts[row], free.tokens[row]
        position = text.find(stop[0])
        if position < 0:
            assert result.tokens[row] == tokens and result.texts[row] == text
            assert result.row_denoise_forwards[row] == free.row_denoise_forwards[row]
            continue
        kept = max(n for n in range(len(tokens)) if len(letters(tokens[:n])) <= position)
        assert (result.tokens[row], result.texts[row]) == (tokens[:kept], text[:position])
        assert result.accepted_at[row] == free.accepted_at[row][:kept]
        end = min(n for n in range(len(tokens) + 1) if len(letters(tokens[:n])) >= position + len(stop[0]))
        if mode in ("diffusion", "psd"):  # the block in which the string ends is the last
            last_block = free.accepted_at[row][: -(-end // 4) * 4]
            assert result.row_denoise_forwards[row] == max(last_block)
        else:  # at most the cycles between two looks more, or what a block takes
            assert result.row_denoise_forwards[row] <= free.accepted_at[row][end - 1] + 16


@pytest.mark.parametrize(("mode", "temperature"), [("ar", 0.7), ("psd", 0.0), ("mars", 0.7)])
def test_watching_changes_nothing(mode, temperature):
    rng = np.random.default_rng()
    decoder, given, seen = Decoder(make_model()), prompts(rng, [2, 7]), []
    settings = dict(max_new_tokens=LIMIT, eos_id=EOS, temperature=temperature, mode=mode)
    assert decoder(given, on_block=seen.append, **settings) == decoder(given, **settings)
    assert len(seen) > 1 and all(len(tokens) == 2 for tokens in seen)


def test_a_model_without_a_mask_token_is_watched_too():
    model = make_model()
    model.spec = dataclasses.replace(model.spec, conversion=None)
    decoder, given = Decoder(model), [[1, 2, 3]]
    whole = decoder(given, max_new_tokens=12, mode="ar")
    assert decoder(given, max_new_tokens=12, mode="ar", on_block=lambda tokens: None) == whole


def test_a_reader_cuts_once_and_at_the_character():
    reader = Reader(("cd", "zz"), lambda tokens: bytes(tokens).decode(errors="replace"), 2)
    growing = Generation([list(b"abc"), list("é".encode())], [[1, 1, 2], [1, 2]], [2, 2], [0, 0])
    assert reader.read(growing).texts == ["abc", "é"] and not reader.stopped_B.any()
    grown = Generation([list(b"abcd"), list("éczzcd".encode())], [[1, 1, 2, 3], [1] * 7], [3, 3], [0, 0])
    cut = reader.read(grown)
    assert cut.texts == ["ab", "éc"] and cut.tokens == [list(b"ab"), list("éc".encode())]
    assert cut.accepted_at == [[1, 1], [1] * 3] and reader.stopped_B.all()
    later = Generation([[250] * 9, [250] * 9], [[1] * 9] * 2, [4, 4], [0, 0])  # what lies behind is not read again
    assert reader.read(later).texts == cut.texts


@pytest.mark.parametrize(
    ("settings", "reason"),
    [(dict(stop="x"), "need detokenize"), (dict(stop=["a", ""], detokenize=letters), "at least one character")],
)
def test_bad_stops_are_refused(settings, reason):
    with pytest.raises(InputError, match=reason):
        Decoder(make_model())([[VOCAB - 2]], max_new_tokens=4, **settings)
