"""`edlm generate`: rules and modes from the command line, chat templates, text that appears block by block."""

import io
import json
import shutil
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from edlm_jax import pretrained
from edlm_jax.commands.generate import _Printer
from edlm_jax.commands.main import main
from edlm_jax.decoding import MODES
from edlm_jax.errors import InputError
from edlm_jax.pretrained import Text
from edlm_jax.pretrained.chat import encode_prompt
from tests.chain import byte_tokenizer, copy_with, save_chain, save_tokenizer, steps, word_tokenizer
from tests.conftest import TINY
from tests.data.conftest import CHAT_TEMPLATE, END, make_tokenizer

QUICKSTART = Path(pretrained.__file__).parent / "quickstart_ar"


def test_text_appears_once_and_characters_whole(capsys):
    tokenizer, shown = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer()), []
    text, prompt = " fünf €uro ", tokenizer.encode("ü")
    tokens = prompt[1:] + tokenizer.encode(text)
    printer = _Printer(Text(tokenizer), prompt[:1], chat=False)
    for end in range(1, len(tokens) + 1):
        printer([tokens[:end]])
        shown.append(capsys.readouterr().out)
    assert "".join(shown) == "ü" + text
    assert "" in shown[:-1] and not any("\ufffd" in part for part in shown)


def test_an_answer_has_no_white_space_around_it(capsys):
    tokenizer, shown = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer()), []
    printer, tokens = _Printer(Text(tokenizer), [65], chat=True), tokenizer.encode(" a b\n")
    for end in range(1, len(tokens) + 1):
        printer([tokens[:end]])
        shown.append(capsys.readouterr().out)
    assert shown == ["", "a", "", " b", ""]


def test_chat_uses_the_template():
    tokenizer = make_tokenizer(eos_token=END)
    with pytest.raises(InputError, match="a chat template, and this one has none"):
        encode_prompt(tokenizer, "hi", True)
    tokenizer.chat_template = CHAT_TEMPLATE
    expected = f"<|im_start|>user\nhi{END}\n<|im_start|>assistant\n"
    assert tokenizer.decode(encode_prompt(tokenizer, "hi", True)) == expected
    assert encode_prompt(tokenizer, expected, False) == encode_prompt(tokenizer, "hi", True)
    assert encode_prompt(tokenizer, f"hi{END}", True).count(tokenizer.eos_token_id) == 1


def test_what_a_tokenizer_adds_behind_a_text_does_not_close_the_prompt(tmp_path, capsys):
    directory = shutil.copytree(QUICKSTART, tmp_path / "model")
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    added = TemplateProcessing(single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)])
    tokenizer["post_processor"] = json.loads(added.__getstate__())
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    command = ["generate", f"--model={directory}", "--max-new-tokens=8", "--dtype=float32", "--json"]
    assert main([*command, "--prompt=add 3+4 9+8 0+5 ->"]) == 0
    assert json.loads(capsys.readouterr().out)["completions"][0]["text"] == " 7 17 5"


def test_a_prompt_begins_once():
    tokenizer = make_tokenizer(bos_token="<|im_start|>")
    start = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    ids = encode_prompt(tokenizer, "<|im_start|>hi", False)
    assert ids.count(start) == 1 and ids == encode_prompt(tokenizer, "hi", False)


CHAT = (
    "{% for m in messages %}{{ m.role }}:{{ m.content }}CLOSE\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
PIECES = ("<|endoftext|>", "<|fim_pad|>", "<|im_end|>")  # 256, 257, 258


def print_on_a_terminal(monkeypatch):
    """To be called in the test itself: in each phase of a test pytest puts another file in stdout's place."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)


def save_chat(directory, said, closing):
    """A model with a base tokenizer that says this to every message of a chat, and then the tokenizer's end."""
    template = CHAT.replace("CLOSE", closing)
    made = dict(config=TINY, eos_token=PIECES[0], chat_template=template)
    tokens = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(*PIECES)).encode(f":{said}")
    tokenizer = save_tokenizer(byte_tokenizer(*PIECES), directory / "tokenizer", **made)
    return save_chain(tokenizer, steps(*tokens, 256), directory / "model")


@pytest.mark.parametrize(("closing", "new_tokens"), [("<|im_end|>", 3), ("#end", 2), ("", 4)])
@pytest.mark.parametrize("watched", [False, True])
def test_the_answer_alone_is_printed(tmp_path, monkeypatch, capsys, closing, new_tokens, watched):
    model = save_chat(tmp_path, f"Hi{closing}\n", closing)
    command = ["generate", f"--model={model}", "--prompt=hello", "--chat"]
    if watched:
        print_on_a_terminal(monkeypatch)
    assert main(command) == 0
    captured = capsys.readouterr()
    assert captured.out == "Hi\n\n" and f"{new_tokens} tokens" in captured.err and "empty" not in captured.err


def test_an_empty_answer_is_said(tmp_path, capsys):
    command = ["generate", f"--model={save_chat(tmp_path, '<|im_end|>', '<|im_end|>')}", "--prompt=hello", "--prompt=a"]
    assert main([*command, "--chat"]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == ""
    assert captured.err.splitlines()[:2] == ["the answer to prompt 0 is empty", "the answer to prompt 1 is empty"]


@pytest.mark.parametrize("watched", [False, True])
def test_words_with_leading_spaces(tmp_path, monkeypatch, capsys, watched):
    tokenizer = word_tokenizer()
    said = tokenizer.encode("w2 w58 w43").ids
    directory = save_tokenizer(tokenizer, tmp_path / "tokenizer", config=TINY, eos_token="</s>")
    model = save_chain(directory, steps(*said, 0), tmp_path / "model")
    if watched:
        print_on_a_terminal(monkeypatch)
    assert main(["generate", f"--model={model}", "--prompt=w1 w2"]) == 0
    assert capsys.readouterr().out == "w1 w2 w58 w43\n\n"
    assert main(["generate", f"--model={model}", "--prompt=w1 w2", "--stop= w43"]) == 0
    assert capsys.readouterr().out == "w1 w2 w58\n\n"


def test_a_model_ends_where_its_files_say(tmp_path, capsys):
    tokenizer = save_tokenizer(byte_tokenizer(*PIECES), tmp_path / "tokenizer", config=TINY, eos_token=PIECES[0])
    first = save_chain(tokenizer, steps(64, 258, 65, 256), tmp_path / "first")  # a, <|im_end|>, b, <|endoftext|>
    lists = dict(generation_config={"eos_token_id": [258, 256]}), dict(config={"eos_token_id": [258, 256]}), {}
    made = []
    for number, files in enumerate(lists):
        model = copy_with(first, tmp_path / str(number), **files)
        assert main(["generate", f"--model={model}", "--prompt=a", "--json"]) == 0
        made.append(json.loads(capsys.readouterr().out)["completions"][0]["new_tokens"])
    assert made == [1, 1, 3]


def test_a_stop_string_that_is_a_special_token(tmp_path, capsys):
    model = copy_with(QUICKSTART, tmp_path / "model", tokenizer_config={"eos_token": "<|fim_suffix|>"})
    command = ["generate", f"--model={model}", "--prompt=add 3+4 9+8 0+5 ->", "--max-new-tokens=24", "--json"]
    assert main([*command, "--stop=<|endoftext|>"]) == 0
    (completion,) = json.loads(capsys.readouterr().out)["completions"]
    assert (completion["text"], completion["new_tokens"]) == (" 7 17 5", 7)


def test_a_terminal_shows_nothing_that_is_taken_back(monkeypatch, capsys):
    print_on_a_terminal(monkeypatch)
    command = ["generate", f"--model={QUICKSTART}", "--prompt=count 37 by 3 for 6 ->", "--stop=43 46"]
    assert main(command) == 0
    assert capsys.readouterr().out == "count 37 by 3 for 6 -> 37 40 \n\n"


COMMANDS = [["generate", "--prompt=a"], ["evaluate"], ["diagnose"], ["bench", "decode"]]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("device", "dtype"), [("cpu", "float32"), ("gpu", "bfloat16")])
def test_what_a_command_computes_in(tiny_converted_dir, tmp_path, monkeypatch, command, device, dtype):
    monkeypatch.chdir(tmp_path)
    found = []

    def load(path, dtype, **_):
        found.append(dtype)
        raise InputError("enough")

    monkeypatch.setattr(pretrained, "load_pretrained", load)
    monkeypatch.setattr("jax.default_backend", lambda: device)
    for asked in ([], ["--dtype=bfloat16"], ["--dtype=float32"]):
        assert main([*command, f"--model={tiny_converted_dir}", *asked]) == 2
    assert found == [dtype, "bfloat16", "float32"]


HOW = [  # with the most tokens that a forward can give
    (["--rule=fixed:2"], 2),
    (["--mode=self_speculation"], 4),
    (["--temperature=1", "--top-k=5"], 4),
    (["--mode=psd", "--stop=never", "--grid=position"], 4),
]


@pytest.mark.parametrize(("how", "most"), HOW)
def test_rules_modes_and_sampling(tiny_converted_dir, capsys, how, most):
    command = ["generate", f"--model={tiny_converted_dir}", "--prompt=sort b a ->", "--max-new-tokens=6", "--json"]
    assert main([*command, *how]) == 0
    result = json.loads(capsys.readouterr().out)
    assert 0 < result["completions"][0]["new_tokens"] <= 6 and 0 < result["tokens_per_forward"] <= most


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


def test_bad_prompts_of_a_file_are_refused_by_index_and_the_rest_goes_on(tiny_converted_dir, tmp_path, capsys):
    lines = ["sort b a ->", "", "a" * 600, "sort q x ->\r", "say <|fim_pad|>", " ", "add 3+4 ->"]
    (tmp_path / "prompts").write_text("\n".join(lines) + "\n", newline="")
    command = ["generate", f"--model={tiny_converted_dir}", "--max-new-tokens=6", "--dtype=float32"]
    file = [f"--prompts-file={tmp_path / 'prompts'}", "--batch-size=2"]
    assert main([*command, *file, "--json"]) == 2
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert [(c["index"], c["prompt"]) for c in result["completions"]] == [
        (0, "sort b a ->"), (3, "sort q x ->"), (6, "add 3+4 ->")
    ]  # fmt: skip
    reasons = {entry["index"]: entry["reason"] for entry in result["refused"]}
    assert list(reasons) == [1, 2, 4, 5]
    assert "prompt 1 is empty" in reasons[1] and "prompt 5 is empty" in reasons[5]
    assert "prompt 2 is too long: 600 tokens and 6 new ones exceed the model's cache of 512" in reasons[2]
    assert "prompt 4 holds the mask token 258" in reasons[4]
    *progress, reason = captured.err.strip().splitlines()
    assert reason == "edlm: 4 of 7 prompts were refused: 1, 2, 4, 5"
    assert [line.partition(" ")[0] for line in progress] == ["[2/3]", "[3/3]"]

    assert main([*command, *file]) == 2
    captured = capsys.readouterr()
    assert "add 3+4 ->" in captured.out and "prompt 4 holds the mask token" in captured.err

    prompts = [f"--prompt={completion['prompt']}" for completion in result["completions"]]
    assert main([*command, *prompts, "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert [c["text"] for c in alone["completions"]] == [c["text"] for c in result["completions"]]
    assert alone["refused"] == []


def test_a_file_of_bad_prompts_alone_is_named_too(tiny_converted_dir, tmp_path, capsys):
    (tmp_path / "prompts").write_text("a" * 600 + "\n\n")
    command = ["generate", f"--model={tiny_converted_dir}", f"--prompts-file={tmp_path / 'prompts'}", "--json"]
    assert main(command) == 2
    result = json.loads(capsys.readouterr().out)
    assert result["completions"] == [] and [entry["index"] for entry in result["refused"]] == [0, 1]


def test_prompts_come_from_a_pipe(tiny_converted_dir, monkeypatch, capsys):
    class Pipe:
        buffer = io.BytesIO(b"sort b a ->\n\nsort c a ->")

        def isatty(self):
            return False

    monkeypatch.setattr("sys.stdin", Pipe())
    assert main(["generate", f"--model={tiny_converted_dir}", "--max-new-tokens=4", "--json"]) == 2
    assert [entry["index"] for entry in json.loads(capsys.readouterr().out)["refused"]] == [1]
