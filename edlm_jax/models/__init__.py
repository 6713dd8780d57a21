"""The Flax decoder: spec from a Hugging Face config.json, transformer, static KV cache."""

from edlm_jax.models.spec import Conversion, ModelSpec
from edlm_jax.models.transformer import Transformer

__all__ = ["Conversion", "ModelSpec", "Transformer"]
