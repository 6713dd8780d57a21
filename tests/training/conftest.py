"""A run small enough to train in a test: a 2-layer Qwen3 shape, a word tokenizer, a few packed documents."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from edlm_jax.training.config import default_config

WORDS = [f"w{index}" for index in range(91)]
HF_CONFIG = dict(
    architectures=["Qwen3ForCausalLM"],
    model_type="qwen3",
    vocab_size=97,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=48,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    max_position_embeddings=256,
    hidden_act="silu",
    tie_word_embeddings=True,
)
MASK_ID = 92


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A directory with a tokenizer and documents: prompts with responses of many lengths."""
    directory = tmp_path_factory.mktemp("corpus")
    vocab = {word: index for index, word in enumerate([*WORDS, "<eos>", "<|mask|>"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<eos>", "<|mask|>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    described = dict(tokenizer_class="PreTrainedTokenizerFast", eos_token="<eos>")
    (directory / "tokenizer_config.json").write_text(json.dumps(described))
    rng = np.random.default_rng()
    words = lambda low, high: " ".join(rng.choice(WORDS, rng.integers(low, high)))  # noqa: E731
    for name, count in (("train", 200), ("test", 9)):
        documents = [dict(prompt=words(1, 9), response=words(2, 15)) for _ in range(count)]
        (directory / f"{name}.jsonl").write_text("\n".join(map(json.dumps, documents)))
    return directory


@pytest.fixture
def config(corpus):
    """Conversion of random weights with clean context, float32, blocks of 4."""
    c = default_config()
    c.dtype = "float32"
    c.steps = 6
    c.log_every = 2
    c.init.hf_config = HF_CONFIG
    c.objective.block_length = 4
    c.data.update(batch_size=8, length=32, tokenizer=str(corpus))
    c.data.sources = (dict(kind="jsonl", path=str(corpus / "train.jsonl")),)
    c.data.eval_sources = (dict(kind="jsonl", path=str(corpus / "test.jsonl")),)
    c.optimizer.learning_rate = 1e-3
    c.checkpoint.every = 3
    return c
