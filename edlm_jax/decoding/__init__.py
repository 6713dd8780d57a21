"""The jitted block decoder, its acceptance rules, and the other modes on the same weights."""

from edlm_jax.decoding.acceptance import Rule, parse_rule
from edlm_jax.decoding.generate import Decoder, generate
from edlm_jax.decoding.generation import Generation
from edlm_jax.decoding.modes import MODES
from edlm_jax.decoding.options import refuse_prompts

__all__ = ["MODES", "Decoder", "Generation", "Rule", "generate", "parse_rule", "refuse_prompts"]
