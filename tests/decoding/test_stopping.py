"""Stop strings in every mode: rows cut where their text says, nothing else changed, no forwards after it."""

import dataclasses

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from edlm_jax.decoding import MODES, Decoder, generate
from edlm_jax.decoding.generation import Generation
from edlm_jax.decoding.stopping import Reader
from edlm_jax.errors import InputError
from edlm_jax.pretrained import Text
from tests.chain import byte_tokenizer
from tests.decoding.tiny import EOS, VOCAB, make_model, prompts
from tests.seeds import fresh_rng

LIMIT = 22


def letters(tokens):
    """Tokens of one to three letters: what is looked for lies across their borders."""
    return "".join("abcdefgh"[token % 8] * (1 + token % 3) for token in tokens)


@pytest.mark.parametrize("mode", MODES)
def test_rows_end_before_the_stop_string(mode):
    rng = fresh_rng()
    decoder, given, seen = Decoder(make_model("shifted", seed=int(rng.integers(1000)))), prompts(rng, [2, 11, 6]), []
    settings = dict(max_new_tokens=LIMIT, threshold=0.5, eos_id=EOS, mode=mode, detokenize=letters)
    free = generate(decoder, given, on_block=seen.append, **settings)
    assert free.texts == [letters(tokens) for tokens in free.tokens]
    # Of the longest row, a string that lies across the border of two tokens in its first third.
    longest = max(range(3), key=lambda row: len(free.tokens[row]))
    border = len(letters(free.tokens[longest][: len(free.tokens[longest]) // 3]))
    stop = [free.texts[longest][border - 1 : border + 2], "never"]
    result = generate(decoder, given, stop=stop, **settings)
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
    rng = fresh_rng()
    decoder, given, seen = Decoder(make_model()), prompts(rng, [2, 7]), []
    settings = dict(max_new_tokens=LIMIT, eos_id=EOS, temperature=temperature, mode=mode)
    assert generate(decoder, given, on_block=seen.append, **settings) == generate(decoder, given, **settings)
    assert len(seen) > 1 and all(len(tokens) == 2 for tokens in seen)


def test_a_model_without_a_mask_token_is_watched_too():
    model = make_model()
    model.spec = dataclasses.replace(model.spec, conversion=None)
    decoder, given = Decoder(model), [[1, 2, 3]]
    whole = generate(decoder, given, max_new_tokens=12, mode="ar")
    assert generate(decoder, given, max_new_tokens=12, mode="ar", on_block=lambda tokens: None) == whole


def test_a_reader_cuts_once_and_at_the_character():
    reader = Reader(("cd", "zz"), characters, [list(b"c"), list(b"c")])  # a prompt's text stops nothing
    growing = Generation([list(b"abc"), list("é".encode())], [[1, 1, 2], [1, 2]], [2, 2], [0, 0])
    assert reader.read(growing).texts == ["abc", "é"] and not reader.stopped_B.any()
    grown = Generation([list(b"abcd"), list("éczzcd".encode())], [[1, 1, 2, 3], [1] * 7], [3, 3], [0, 0])
    cut = reader.read(grown)
    assert cut.texts == ["ab", "éc"] and cut.tokens == [list(b"ab"), list("éc".encode())]
    assert cut.accepted_at == [[1, 1], [1] * 3] and reader.stopped_B.all()
    later = Generation([[250] * 9, [250] * 9], [[1] * 9] * 2, [4, 4], [0, 0])  # what lies behind is not read again
    assert reader.read(later).texts == cut.texts


def characters(tokens):
    return bytes(tokens).decode(errors="replace")


def test_a_stop_string_may_name_special_tokens():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer("<|im_start|>", "<|im_end|>"))
    text = Text(tokenizer, (256,))
    given = [tokenizer.encode("a<|im_end|>b")] * 4
    said = [*tokenizer.encode("one<|im_end|>\ntwo"), 256]
    answers = {}
    for stop in ("<|im_end|>", "e<|im_end|>\nt", "<|im_start|>", "e\nt", "<|"):
        reader = Reader((stop,), text, given[:1])
        read = reader.read(Generation([said], [said], [2], [0]))
        answers[stop] = (read.tokens[0], read.texts[0], reader.stopped_B.all())
    assert answers == {
        "<|im_end|>": (said[:3], "one", True),
        "e<|im_end|>\nt": (said[:2], "on", True),
        "<|im_start|>": (said[:-1], "one\ntwo", True),
        "e\nt": (said[:2], "on", True),  # in what is shown
        "<|": (said, "one\ntwo", False),  # a name is no text
    }


def test_half_a_character_is_no_stop_string():
    """What its first bytes read as may be one, and is found where something follows it."""
    said, cut = "go 4€ b".encode(), {}
    for tokens in (said, b"go 4\xe2 b"):
        reader = Reader(("\ufffd",), characters, [[65]])
        for end in range(len(tokens) + 1):
            read = reader.read(Generation([list(tokens[:end])], [[1] * end], [end], [0]))
        cut[tokens] = read.texts[0], bool(reader.stopped_B.all())
    assert list(cut.values()) == [("go 4€ b", False), ("go 4", True)]


@pytest.mark.parametrize(
    ("stop", "seen"),  # with every byte of "go 43 4€<|im_end|>"
    [
        ("43 46", ["", "g", "go", *["go "] * 7, *["go 43 4€"] * 2]),
        ("€x", ["", "g", "go", "go ", "go 4", "go 43", "go 43 ", *["go 43 4"] * 5]),
        ("4€<|im_end|>!", ["", "g", "go", "go ", "go ", "go 43", "go 43 ", *["go 43 "] * 5]),
        ("4€<|im_end|>", ["", "g", "go", "go ", "go ", "go 43", "go 43 ", *["go 43 "] * 5]),
    ],
)
def test_whoever_watches_sees_no_beginning_of_a_stop_string(stop, seen):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer("<|im_end|>"))
    said, shown = tokenizer.encode("go 43 4€<|im_end|>"), []
    reader = Reader((stop,), Text(tokenizer), [[65]] * 2)
    for end in range(len(said) + 1):
        growing = reader.read(Generation([said[:end]] * 2, [said[:end]] * 2, [end] * 2, [0, 0]))
        open_row, done_row = reader.settled(growing, np.array([False, True]))
        assert done_row == growing.tokens[1]
        shown.append(tokenizer.decode(open_row, skip_special_tokens=True))
    assert shown == seen


@pytest.mark.parametrize("mode", ["diffusion", "ar"])
def test_what_was_seen_stays(mode):
    decoder, given, seen = Decoder(make_model("shifted")), prompts(np.random.default_rng(1), [2, 11]), []
    settings = dict(max_new_tokens=LIMIT, threshold=0.5, mode=mode, detokenize=letters)
    free = generate(decoder, given, **settings).tokens[0]
    stop = letters(free[:11])[len(letters(free[:2])) :]
    result = generate(decoder, given, stop=stop, on_block=seen.append, **settings)
    assert len(result.tokens[0]) <= 2 and seen[-1] == result.tokens  # the string spans two pieces at least
    for tokens in seen:
        assert all(whole[: len(row)] == row for row, whole in zip(tokens, result.tokens, strict=True))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [(dict(stop="x"), "need detokenize"), (dict(stop=["a", ""], detokenize=letters), "at least one character")],
)
def test_bad_stops_are_refused(settings, reason):
    with pytest.raises(InputError, match=reason):
        generate(make_model(), [[VOCAB - 2]], max_new_tokens=4, **settings)
