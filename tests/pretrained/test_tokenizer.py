"""Tokenizers beside the weights, and the mask token of each family."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from edlm_jax import InputError, load_pretrained
from edlm_jax.pretrained import load_tokenizer, mask_token
from edlm_jax.pretrained import tokenizer as tokenizer_module
from edlm_jax.pretrained.mask_token import choose_mask_token, start_mask_embedding

GOLDEN = Path(__file__).parents[1] / "golden"
WORDS = ("[UNK]", "a", "b", "c", "d", "</s>")


def make_tokenizer(special: list[str], **kwargs) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", **kwargs)
    fast.add_special_tokens({"additional_special_tokens": special})
    return fast


@pytest.fixture
def directory(tmp_path) -> Path:
    return Path(shutil.copytree(GOLDEN / "qwen3", tmp_path / "model"))


@pytest.fixture(scope="module")
def spec():
    return load_pretrained(GOLDEN / "qwen3").spec


def test_tokenizer_loads_and_goes_with_the_export(directory):
    make_tokenizer(["<|fim_pad|>"]).save_pretrained(directory)
    tokenizer = load_tokenizer(directory)
    assert tokenizer("a c <|fim_pad|>")["input_ids"] == [1, 3, 6]


def test_long_texts_are_taken_without_a_warning(directory, monkeypatch):
    make_tokenizer(["<|fim_pad|>"], model_max_length=4).save_pretrained(directory)
    warnings = []
    logger = logging.getLogger("transformers.tokenization_utils_base")
    monkeypatch.setattr(logger, "warning", lambda message, *_: warnings.append(message))
    assert len(load_tokenizer(directory).encode("a b c d a b c d")) == 8
    assert not warnings
    PreTrainedTokenizerFast.from_pretrained(directory).encode("a b c d a b c d")
    assert "longer than the specified" in warnings[0]  # transformers' own way: else the line above shows nothing


def test_a_tokenizer_larger_than_the_model_is_refused(directory):
    make_tokenizer([f"<extra_{i}>" for i in range(61)]).save_pretrained(directory)
    assert len(load_tokenizer(directory)) == 67  # exactly the model's
    make_tokenizer([f"<extra_{i}>" for i in range(62)]).save_pretrained(directory)
    with pytest.raises(InputError, match="ids up to 67, the model's vocabulary ends at 67"):
        load_tokenizer(directory)


def test_a_missing_or_broken_tokenizer_is_refused(directory):
    with pytest.raises(InputError, match="has no tokenizer"):
        load_tokenizer(directory)
    (directory / "tokenizer.json").write_text(json.dumps({"model": 3}))
    with pytest.raises(InputError, match="cannot be loaded") as error:
        load_tokenizer(directory)
    assert "\n" not in str(error.value)
    for content, reason in (("[]", "is not a JSON object"), ("[" * 100_000, "is not JSON: maximum recursion depth")):
        (directory / "tokenizer_config.json").write_text(content)
        with pytest.raises(InputError, match=f"tokenizer_config.json {reason}"):
            load_tokenizer(directory)


@pytest.mark.parametrize(
    ("special", "chosen"),
    [
        (["<|fim_prefix|>", "<|fim_pad|>", "<|im_end|>"], "<|fim_pad|>"),
        (["<|python_tag|>", "<|reserved_special_token_0|>"], "<|reserved_special_token_0|>"),
        (["[INST]", "[control_8]", "[control_9]"], "[control_8]"),
        (["<SPECIAL_20>", "[INST]"], "<SPECIAL_20>"),
        (["<unused3>", "<start_of_turn>"], "<unused3>"),
        (["<filename>", "<empty_output>"], "<empty_output>"),
        (["<|fim_pad|>", "<|mask|>"], "<|mask|>"),
    ],
)
def test_each_family_has_its_slot(special, chosen, spec):
    tokenizer = make_tokenizer(special)
    assert choose_mask_token(tokenizer, spec) == tokenizer.convert_tokens_to_ids(chosen)


def test_a_slot_that_is_in_use_is_not_taken(spec):
    tokenizer = make_tokenizer(["<|fim_pad|>", "<|reserved_special_token_7|>"], pad_token="<|fim_pad|>")
    assert choose_mask_token(tokenizer, spec) == tokenizer.convert_tokens_to_ids("<|reserved_special_token_7|>")
    with pytest.raises(InputError, match="set init.mask_token_id"):
        choose_mask_token(make_tokenizer(["<|fim_pad|>"], pad_token="<|fim_pad|>"), spec)
    with pytest.raises(InputError, match="set init.mask_token_id"):
        choose_mask_token(make_tokenizer(["<|im_start|>"]), spec)


def test_an_end_that_the_files_list_is_no_mask(spec):
    tokenizer = make_tokenizer(["<|fim_pad|>", "<|reserved_special_token_7|>"])
    pad, reserved = tokenizer.convert_tokens_to_ids(["<|fim_pad|>", "<|reserved_special_token_7|>"])
    ends = json.dumps(json.loads(spec.hf_json) | {"eos_token_id": [tokenizer.eos_token_id, pad]})
    spec = dataclasses.replace(spec, hf_json=ends)
    assert choose_mask_token(tokenizer, spec) == reserved
    with pytest.raises(InputError, match="'<|fim_pad|>', which text uses"):
        choose_mask_token(tokenizer, spec, pad)


def test_an_override_is_checked(spec):
    tokenizer = make_tokenizer(["<|fim_pad|>"])
    assert choose_mask_token(tokenizer, spec, 66) == 66  # beyond the tokenizer, still a row of the embedding
    assert choose_mask_token(tokenizer, spec, 3) == 3
    for override, named in ((67, "outside the vocabulary of 67"), (-2, "outside"), (5, "'</s>', which text uses")):
        with pytest.raises(InputError, match=named):
            choose_mask_token(tokenizer, spec, override)


def test_how_the_mask_embedding_starts():
    model = load_pretrained(GOLDEN / "qwen2_untied", "float32")
    model.embedding_VD[...] = model.embedding_VD[...].at[9].multiply(1e-6).at[:, 0].add(2.0).at[9, 0].set(0.0)
    before = np.asarray(model.embedding_VD[...])
    head = np.asarray(model.head_DV[...])
    others = np.delete(before, 9, axis=0)
    key = jax.random.key(5)

    ratio = start_mask_embedding(model, 9, "keep", key)
    np.testing.assert_array_equal(model.embedding_VD[...], before)
    assert ratio < 1e-4  # a decayed slot shows

    assert start_mask_embedding(model, 9, "mean", key) == pytest.approx(1.0, rel=1e-5)
    row = np.asarray(model.embedding_VD[9])
    np.testing.assert_allclose(row / np.linalg.norm(row), others.mean(0) / np.linalg.norm(others.mean(0)), atol=1e-5)

    assert 0.3 < start_mask_embedding(model, 9, "noise", key) < 3
    draw = jax.vmap(lambda key: mask_token._start(model.embedding_VD[...], 9, "noise", key)[0])
    rows = np.asarray(draw(jax.random.split(key, 300)))
    np.testing.assert_allclose(rows.mean(0), others.mean(0), atol=5 * others.std(0).max() / 300**0.5)
    np.testing.assert_allclose(rows.std(0), others.std(0), rtol=0.25)

    np.testing.assert_array_equal(np.delete(model.embedding_VD[...], 9, axis=0), others)
    np.testing.assert_array_equal(model.head_DV[...], head)
    with pytest.raises(InputError, match="'zero' is not one of keep, mean, noise"):
        start_mask_embedding(model, 9, "zero", key)


def test_a_bf16_embedding_stays_bf16():
    model = load_pretrained(GOLDEN / "qwen3")
    start_mask_embedding(model, 3, "noise", jax.random.key(1))
    assert model.embedding_VD[...].dtype == jnp.bfloat16


LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>")


def write_code(directory: Path, config: dict, tokenizer_class: str) -> None:
    """Files as Dream's and LLaDA's: transformers would import the modules that auto_map names. They leave a trace."""
    for module in ("tokenization_own", "configuration_own"):
        code = f"open({str(directory / 'it_ran')!r}, 'w').close()\nclass Own{tokenizer_class}: pass\n"
        (directory / f"{module}.py").write_text(code)
    auto = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    (directory / "config.json").write_text(json.dumps(config | {"auto_map": auto}))


def write_dream(directory: Path) -> None:
    """Dream's tokenizer: vocab.json and merges.txt, special tokens in tokenizer_config.json, a class of its own."""
    pieces = [*LETTERS, "ab", "\u0120ab"]
    (directory / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (directory / "merges.txt").write_text("#version: 0.2\na b\n\u0120 ab\n")
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    added = {len(pieces) + i: dict(content=token, special=True, **flags) for i, token in enumerate(SPECIAL)}
    settings = dict(tokenizer_class="DreamTokenizer", added_tokens_decoder=added, unk_token=None)
    settings |= dict(bos_token="<|beginoftext|>", eos_token="<|endoftext|>", mask_token="<|mask|>", errors="replace")
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_own.DreamTokenizer", None]}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture
def nobody(monkeypatch):
    """Fails where somebody is asked."""
    monkeypatch.setattr("builtins.input", lambda question="": pytest.fail(f"asked: {question}"))


def test_dreams_tokenizer_is_read_as_qwen2s_and_its_code_never_runs(tmp_path, nobody):
    write_dream(tmp_path)
    write_code(tmp_path, dict(architectures=["DreamModel"], model_type="Dream", vocab_size=263), "DreamTokenizer")
    tokenizer = load_tokenizer(tmp_path)
    ids = [256, 257, 262, LETTERS.index("\u0120"), LETTERS.index("1"), LETTERS.index("2"), 260]
    assert tokenizer.encode("ab ab<|mask|> 12<|im_end|>") == ids
    assert tokenizer.decode(ids) == "ab ab<|mask|> 12<|im_end|>" and len(tokenizer) == 263
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id) == (261, 258, 262)
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("tokenizer_class", ["PreTrainedTokenizerFast", "LLaDATokenizer", "Qwen2Tokenizer"])
def test_no_code_beside_a_tokenizer_runs(directory, nobody, tokenizer_class):
    make_tokenizer(["<|mdm_mask|>"]).save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text()) | {"model_type": "llada"}
    write_code(directory, config, tokenizer_class)
    settings = json.loads((directory / "tokenizer_config.json").read_text()) | {"tokenizer_class": tokenizer_class}
    settings["auto_map"] = {"AutoTokenizer": [None, f"tokenization_own.Own{tokenizer_class}"]}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_tokenizer(directory).convert_tokens_to_ids("c") == 3
    assert not (directory / "it_ran").exists()


def test_a_tokenizer_that_is_code_alone_is_refused(tmp_path, nobody):
    write_dream(tmp_path)
    write_code(tmp_path, dict(architectures=["OwnModel"], vocab_size=263), "OwnTokenizer")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"tokenizer_class": "OwnTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="code in that directory, which never runs"):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "it_ran").exists()


def test_sentencepiece_is_asked_for_where_its_model_lies_alone(directory, monkeypatch):
    """tiktoken's model of the same name is text."""
    monkeypatch.setattr(tokenizer_module, "find_spec", lambda name: None)
    (directory / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    with pytest.raises(InputError, match="needs SentencePiece: pip install sentencepiece"):
        load_tokenizer(directory)
    (directory / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    assert not tokenizer_module._needs_sentencepiece(directory)
    (directory / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    make_tokenizer(["<|fim_pad|>"]).save_pretrained(directory)  # tokenizer.json comes first
    assert load_tokenizer(directory).encode("a") == [1]


def test_a_tokenizer_may_lie_alone(tmp_path):
    make_tokenizer(["<|fim_pad|>"]).save_pretrained(tmp_path)
    assert len(load_tokenizer(tmp_path, vocab_size=7)) == 7
    with pytest.raises(InputError, match="ids up to 6, the model's vocabulary ends at 6"):
        load_tokenizer(tmp_path, vocab_size=6)
