"""The jitted block decoder, its acceptance rule, and the AR mode on the same weights."""

from edlm_jax.decoding.acceptance import accept, propose
from edlm_jax.decoding.generate import MODES, Decoder, Generation, generate, pad_prompts

__all__ = ["MODES", "Decoder", "Generation", "accept", "generate", "pad_prompts", "propose"]
