"""Eight CPU devices in one process, so that meshes can be tested; silent broadcasting of ranks is an error."""

import os
import tempfile
from importlib.metadata import version

os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported: a test must not take somebody's accelerator
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads and forked workers do not mix
# Compiling small programs takes most of the tests' time, so the compiler tries less hard (parity tests use all of it),
# and pytest's workers and the processes that tests start, which inherit this, share what was compiled.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
if "PYTEST_XDIST_WORKER" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix="edlm_jax-tests-")  # removed when pytest ends
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", COMPILED.name)  # tests/faults has one for many runs
    if version("jaxlib").startswith("0.10."):  # half the time to compile; later ones have no choice
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from tests.seeds import begin_test

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

TINY = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_act": "silu",
    "vocab_size": 259,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "attention_bias": False,
}


def pytest_collection_modifyitems(items):
    """The longest tests first, or one worker sits over them at the end while the others have none left."""
    longest = ("test_processes.py", "test_train.py", "test_notebooks.py", "test_convert.py")
    items.sort(key=lambda item: item.path.name not in longest)


@pytest.fixture(autouse=True)
def shown_seed():
    """A failing test shows the seed of its random inputs."""
    begin_test()


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Linux lets a process map 65530 pieces of memory; a program holds several, and jaxlib crashes at the limit."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory) -> Path:
    """A byte-level tokenizer of 256 bytes and three special tokens, beside a config.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    directory = tmp_path_factory.mktemp("tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|pad|>", "<|fim_pad|>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "config.json").write_text(json.dumps(TINY))
    return directory


def _save_tiny(spec, directory: Path) -> Path:
    from flax import nnx

    from edlm_jax import save_pretrained
    from edlm_jax.models import Transformer

    save_pretrained(Transformer(spec, rngs=nnx.Rngs(0)), directory)
    return directory


@pytest.fixture(scope="session")
def tiny_ar_dir(tiny_tokenizer_dir, tmp_path_factory) -> Path:
    """A random Qwen3-shaped AR model of 25k parameters as a Hugging Face directory."""
    from edlm_jax.models import ModelSpec

    spec = ModelSpec.from_hf(TINY, source=str(tiny_tokenizer_dir))
    return _save_tiny(spec, tmp_path_factory.mktemp("ar") / "model")


@pytest.fixture(scope="session")
def tiny_converted_dir(tiny_tokenizer_dir, tmp_path_factory) -> Path:
    """The same model, declared to be converted with blocks of 4."""
    from edlm_jax.models import Conversion, ModelSpec

    spec = ModelSpec.from_hf(TINY, source=str(tiny_tokenizer_dir))
    spec = dataclasses.replace(spec, conversion=Conversion(258, 4, "clean_context", "same_position", "block_causal"))
    return _save_tiny(spec, tmp_path_factory.mktemp("converted") / "model")
