"""A run small enough to train in a test: a tiny checkpoint, a word tokenizer, documents of many lengths."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from edlm_jax.pretrained import save_pretrained
from edlm_jax.training.config import default_config
from tests.seeds import fresh_rng
from tests.training.tiny import random_model

WORDS = [f"w{index}" for index in range(91)]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A directory with a tokenizer and documents: prompts with responses."""
    directory = tmp_path_factory.mktemp("corpus")
    vocab = {word: index for index, word in enumerate([*WORDS, "<eos>", "<|mask|>"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<eos>", "<|mask|>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    described = dict(tokenizer_class="PreTrainedTokenizerFast", eos_token="<eos>")
    (directory / "tokenizer_config.json").write_text(json.dumps(described))
    rng = fresh_rng()
    words = lambda low, high: " ".join(rng.choice(WORDS, rng.integers(low, high)))  # noqa: E731
    for name, count in (("train", 200), ("test", 9)):
        documents = [dict(prompt=words(1, 9), response=words(2, 15)) for _ in range(count)]
        (directory / f"{name}.jsonl").write_text("\n".join(map(json.dumps, documents)))
    return directory


@pytest.fixture(scope="session")
def checkpoint(corpus, tmp_path_factory):
    """A Hugging Face directory to start from."""
    directory = tmp_path_factory.mktemp("checkpoint") / "ar"
    save_pretrained(random_model(source=str(corpus)), directory)
    return directory


@pytest.fixture
def config(corpus, checkpoint):
    """A config of one's own."""
    return make_config(corpus, checkpoint)


def make_config(corpus, checkpoint):
    """Conversion with clean context, float32, blocks of 4."""
    c = default_config()
    c.dtype = "float32"
    c.steps = 6
    c.log_every = 1
    c.init.path = str(checkpoint)
    c.objective.block_length = 4
    c.data.update(batch_size=8, length=32)
    c.data.sources = (dict(kind="jsonl", path=str(corpus / "train.jsonl")),)
    c.data.eval_sources = (dict(kind="jsonl", path=str(corpus / "test.jsonl")),)
    c.optimizer.schedule = "constant"  # the program does not depend on the number of steps
    c.optimizer.learning_rate = 1e-3
    c.checkpoint.every = 3
    return c
