"""Which tokens end a model, and how its tokens read behind their prompt."""

import json

import pytest

from edlm_jax import load_pretrained, save_pretrained
from edlm_jax.errors import InputError
from edlm_jax.models import ModelSpec
from edlm_jax.pretrained import Text, load_tokenizer
from edlm_jax.pretrained.text import read_after
from tests.chain import byte_tokenizer, copy_with, save_chain, save_tokenizer, word_tokenizer
from tests.conftest import TINY

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # 256, 257, 258
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def make_text(directory, config=(), generation=None, special=SPECIAL, **settings) -> Text:
    """The text of a model directory whose files say this."""
    save_tokenizer(byte_tokenizer(*special), directory, config=TINY | dict(config), **settings)
    if generation is not None:
        (directory / "generation_config.json").write_text(generation)
    spec = ModelSpec.from_hf(json.loads((directory / "config.json").read_text()), source=str(directory))
    return Text.of(spec, load_tokenizer(directory))


@pytest.mark.parametrize(
    ("tokenizer", "config", "generation", "ends"),
    [
        ({"eos_token": "<|endoftext|>"}, {}, None, (256,)),
        ({"eos_token": "<|endoftext|>"}, {"eos_token_id": 7}, '{"eos_token_id": [258, 256]}', (256, 258, 7)),
        ({"eos_token": "<|im_end|>"}, {"eos_token_id": [256, 258]}, '{"temperature": 0.6}', (258, 256)),
        ({}, {"eos_token_id": None}, '{"eos_token_id": 256}', (256,)),
        ({"eos_token": "<|endoftext|>", "chat_template": CHATML}, {}, None, (256, 258)),
        ({"eos_token": "<|endoftext|>", "chat_template": "{{ messages[3].content }}"}, {}, None, (256,)),
        ({}, {}, None, ()),
    ],
)
def test_a_model_ends_at_all_that_is_said(tmp_path, tokenizer, config, generation, ends):
    text = make_text(tmp_path, config, generation, **tokenizer)
    assert text.ends == ends and text.turn_stop == ""


def test_a_turn_that_ends_without_a_token_of_its_own(tmp_path):
    text = make_text(tmp_path, special=SPECIAL[:1], chat_template=CHATML, eos_token="<|endoftext|>")
    assert (text.ends, text.turn_stop) == ((256,), "<|im_end|>")


@pytest.mark.parametrize(
    ("generation", "reason"),
    [
        ('{"eos_token_id": "</s>"}', "eos_token_id must be a token's id or a list of them, not '</s>'"),
        ('{"eos_token_id": [2, true]}', r"a list of them, not \[2, True\]"),
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
    ],
)
def test_what_is_no_end_is_refused(tmp_path, generation, reason):
    with pytest.raises(InputError, match=reason):
        make_text(tmp_path, generation=generation)


def test_the_ends_survive_export_and_load(tmp_path):
    save_tokenizer(byte_tokenizer(*SPECIAL), tmp_path / "tokenizer", config=TINY, eos_token="<|endoftext|>")
    first = save_chain(tmp_path / "tokenizer", {}, tmp_path / "first")
    listed = dict(config={"eos_token_id": [9, 8]}, generation_config={"eos_token_id": [258, 256], "top_k": 20})
    changed = copy_with(first, tmp_path / "changed", **listed)
    save_pretrained(load_pretrained(changed), tmp_path / "again")
    model = load_pretrained(tmp_path / "again")
    ends = Text.of(model.spec, load_tokenizer(tmp_path / "again")).ends
    assert ends[0] == 256 and sorted(ends) == [8, 9, 256, 258]  # the tokenizer's own first, the others in any order


def test_tokens_read_as_they_follow_their_prompt(tmp_path):
    save_tokenizer(word_tokenizer(), tmp_path, config=TINY, eos_token="</s>")
    text = Text(load_tokenizer(tmp_path))
    prompt, new = text.tokenizer.encode("w1 w2"), text.tokenizer.encode("w58 w43") + [0]
    assert text.shown(new) == "w58 w43"  # what is wrong with reading them alone
    for length in (1, 40):
        assert read_after(text.shown, prompt * length, new) == " w58 w43"
    assert read_after(text.whole, prompt, new) == " w58 w43</s>"
    assert read_after(text.shown, prompt, []) == ""


def test_a_character_may_begin_in_the_prompt(tmp_path):
    text = make_text(tmp_path, clean_up_tokenization_spaces=True)
    tokens = text.tokenizer.encode("a€é , b")
    assert [read_after(text.shown, tokens[:n], tokens[n:]) for n in (1, 2, 3, 4, 5)] == [
        "€é , b", "€é , b", "€é , b", "é , b", "é , b"
    ]  # fmt: skip
