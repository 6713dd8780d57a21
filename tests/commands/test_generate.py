"""`edlm generate`: rules and modes from the command line, chat templates, text that appears block by block."""

import json

import pytest

from edlm_jax.commands.generate import _encode, _Printer
from edlm_jax.commands.main import main
from edlm_jax.decoding import MODES
from edlm_jax.errors import InputError


class Bytes:
    """A tokenizer of bytes, as far as the command needs one."""

    chat_template = "{{ messages }}"

    def decode(self, tokens, skip_special_tokens):
        return bytes(tokens).decode("utf-8", errors="replace")

    def encode(self, text):
        return list(text.encode())

    def apply_chat_template(self, messages, add_generation_prompt, return_dict):
        text = "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>" * add_generation_prompt
        return {"input_ids": self.encode(text)}


def test_text_appears_once_and_characters_whole(capsys):
    text, printer, shown = "fünf €uro", _Printer(Bytes()), []
    tokens = list(text.encode())
    for end in range(1, len(tokens) + 1):
        printer([tokens[:end]])
        shown.append(capsys.readouterr().out)
    assert "".join(shown) == text
    assert "" in shown[:-1] and not any("\ufffd" in part for part in shown)


def test_chat_uses_the_template():
    tokenizer = Bytes()
    assert bytes(_encode(tokenizer, "hi", True)) == b"<user>hi<assistant>"
    assert bytes(_encode(tokenizer, "hi", False)) == b"hi"
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        _encode(tokenizer, "hi", True)


HOW = [
    ["--rule=fixed:2"],
    ["--mode=self_speculation"],
    ["--temperature=1", "--top-k=5"],
    ["--mode=psd", "--stop=never"],
]


@pytest.mark.parametrize("how", HOW)
def test_rules_modes_and_sampling(tiny_converted_dir, capsys, how):
    command = ["generate", f"--model={tiny_converted_dir}", "--prompt=sort b a ->", "--max-new-tokens=6", "--json"]
    assert main([*command, *how]) == 0
    result = json.loads(capsys.readouterr().out)
    assert 0 < result["completions"][0]["new_tokens"] <= 6 and result["tokens_per_forward"] > 0


def test_text_ends_before_a_stop_string(tiny_converted_dir, capsys):
    command = ["generate", f"--model={tiny_converted_dir}", "--prompt=sort b a ->", "--max-new-tokens=6", "--json"]
    texts = []
    for stop in ([], ["--stop={}"]):
        assert main([*command, *(option.format(texts[0][1]) for option in stop)]) == 0
        texts.append(json.loads(capsys.readouterr().out)["completions"][0]["text"])
    assert texts[1] == texts[0][: texts[0].find(texts[0][1])]


def test_every_mode_can_be_chosen(capsys):
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    assert f"--mode {{{','.join(MODES)}}}" in capsys.readouterr().out


def test_bad_rules_are_one_line(tiny_converted_dir, capsys):
    assert main(["generate", f"--model={tiny_converted_dir}", "--prompt=a", "--rule=magic:1"]) == 2
    assert "choose one of threshold, factor" in capsys.readouterr().err
