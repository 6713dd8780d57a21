"""Hugging Face checkpoints in and out, strict."""

from edlm_jax.pretrained.load import load_pretrained, load_spec, open_parameters
from edlm_jax.pretrained.save import save_pretrained
from edlm_jax.pretrained.text import Text
from edlm_jax.pretrained.tokenizer import load_tokenizer

__all__ = ["Text", "load_pretrained", "load_spec", "load_tokenizer", "open_parameters", "save_pretrained"]
