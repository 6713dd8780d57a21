"""The jitted block decoder, its acceptance rules, and the AR mode on the same weights."""

from edlm_jax.decoding.acceptance import RULES, Rule, parse_rule
from edlm_jax.decoding.generate import MODES, Decoder, Generation, generate, pad_prompts

__all__ = ["MODES", "RULES", "Decoder", "Generation", "Rule", "generate", "pad_prompts", "parse_rule"]
