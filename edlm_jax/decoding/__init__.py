"""The jitted block decoder, its acceptance rules, and the AR mode on the same weights."""

from edlm_jax.decoding.acceptance import Rule, parse_rule
from edlm_jax.decoding.generate import MODES, Decoder, Generation, generate

__all__ = ["MODES", "Decoder", "Generation", "Rule", "generate", "parse_rule"]
