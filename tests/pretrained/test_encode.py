"""Where a text begins and ends, whatever tokenizer reads it."""

import random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from edlm_jax.errors import InputError
from edlm_jax.pretrained import encode
from edlm_jax.pretrained.encode import QUOTED, begin_id, encode_bare, encode_more, encode_text, id_limit, quote

START, END, TURN = "<s>", "</s>", "<|turn|>"
LETTERS = ("<unk>", START, END, *"\u2581<>/|\nabcdefghijklmnopqrstuvwxyz", "ab", "\u2581ab", "\u2581<")
MERGES = [("a", "b"), ("\u2581", "ab"), ("\u2581", "<")]


def spaced(scheme: str, adds: str = "$A") -> PreTrainedTokenizerFast:
    """Letters and a few merges; the space before a text comes as in Llama 2, as in Mistral, or not at all."""
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(LETTERS)}, MERGES, unk_token="<unk>"))
    if scheme == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    return wrap(tokenizer, adds)


def of_bytes(adds: str = "$A") -> PreTrainedTokenizerFast:
    """A token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return wrap(tokenizer, adds)


def wrap(tokenizer: Tokenizer, adds: str) -> PreTrainedTokenizerFast:
    special = [AddedToken(name, normalized=False, special=True) for name in (START, END, TURN)]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    ids = [(name, tokenizer.token_to_id(name)) for name in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=adds, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, eos_token=END)


def read(tokenizer, ids) -> list[str]:
    return tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize("adds", ["$A", f"{START} $A", f"$A {END}", f"{START} $A {END}"])
@pytest.mark.parametrize("make", [of_bytes, lambda adds: spaced("first", adds)])
def test_a_text_begins_once_and_does_not_end(make, adds):
    tokenizer = make(adds)
    plain = tokenizer.encode("ab", add_special_tokens=False)
    start = [tokenizer.bos_token_id] if adds.startswith(START) else []
    assert encode_text(tokenizer, "ab") == start + plain
    assert encode_text(tokenizer, "") == start
    assert read(tokenizer, encode_text(tokenizer, f"{START}a")).count(START) == 1
    written = encode_text(tokenizer, f"ab{END}")  # an end that somebody wrote is no end that the tokenizer added
    assert written == start + plain + [tokenizer.eos_token_id]


def test_what_follows_a_text_has_no_space_of_its_own():
    tokenizer = spaced("first")
    assert read(tokenizer, encode_text(tokenizer, "ab")) == ["\u2581ab"]
    assert read(tokenizer, encode_more(tokenizer, "ab", "cd")) == ["ab"]
    assert read(tokenizer, encode_more(tokenizer, " ab", "cd")) == ["\u2581ab"]
    assert read(tokenizer, encode_more(tokenizer, "ab", "cd ")) == ["ab"]  # the space is the prompt's
    assert encode_more(tokenizer, "ab", "") == encode_text(tokenizer, "ab")
    always = spaced("always")  # behind a special token this one puts a space, too
    assert read(always, encode_more(always, "ab", f"x{TURN}")) == ["\u2581ab"]
    assert read(always, encode_more(always, "ab", f"{TURN}x")) == ["ab"]


@pytest.mark.parametrize("scheme", ["first", "always", "never", "normalizer", "bytes"])
def test_a_quoted_token_is_text_and_all_else_stays(scheme):
    tokenizer = of_bytes() if scheme == "bytes" else spaced(scheme)
    control = {tokenizer.convert_tokens_to_ids(name) for name in (START, END, TURN)}
    said = "a </s>ab"
    ids = encode_bare(tokenizer, f"{TURN}{quote(tokenizer, said)}{END}")
    assert [token for token in ids if token in control] == [ids[0], ids[-1]] == tokenizer.encode(
        TURN + END, add_special_tokens=False
    )
    words = "".join(read(tokenizer, ids[1:-1])).replace("\u0120", "\u2581")  # how bytes write a space
    assert words.removeprefix("\u2581") == said.replace(" ", "\u2581")
    # Without a quotation the way through the aliases gives what the tokenizer gives.
    source = random.Random(seed := random.randrange(2**32))
    for _ in range(50):
        text = "".join(source.choices(["a", "b", "ab", " ", "\n", "<", "</", "<think>", START, END, TURN], k=12))
        found = encode._encode_quoting(tokenizer, text)
        assert found == tokenizer.encode(text, add_special_tokens=False), (seed, text)


def test_every_special_token_of_a_text_is_quoted():
    tokenizer = of_bytes()
    assert quote(tokenizer, f"a{END}<think>{TURN}") == f"a<{QUOTED}/s><think><{QUOTED}|turn|>"
    plain = quote(tokenizer, "nothing < to |turn| quote")
    assert plain == "nothing < to |turn| quote"


def test_what_a_tokenizer_calls_special_tokens_inside_is_text_to_whoever_says_it():
    tokenizer = of_bytes()
    said = f"{END} \ufdd2{tokenizer.eos_token_id}\ufdd2"
    ids = encode_bare(tokenizer, quote(tokenizer, said))
    assert tokenizer.eos_token_id not in ids and tokenizer.decode(ids) == said


def test_what_stands_before_a_text():
    tokenizer = of_bytes()
    assert begin_id(tokenizer) == tokenizer.bos_token_id
    tokenizer.bos_token = None
    assert begin_id(tokenizer) == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="neither a start nor an end token"):
        begin_id(tokenizer)


def test_ids_may_have_holes():
    vocabulary = {letter: 3 * i for i, letter in enumerate("abc")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="a")))
    assert (len(tokenizer), id_limit(tokenizer)) == (3, 7)
