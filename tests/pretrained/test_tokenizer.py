"""Tokenizers beside the weights, and the mask token of each family."""

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
from edlm_jax.pretrained import choose_mask_token, load_tokenizer, mask_token, start_mask_embedding

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
