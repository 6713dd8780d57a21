"""The jitted decoder: modes as values, acceptance rules, sampling; `generate` is its thin front."""

from edlm_jax.decoding.batching import Engine, Event
from edlm_jax.decoding.decoder import Decoder, check_settings, refuse_prompts
from edlm_jax.decoding.generate import generate
from edlm_jax.decoding.generation import Generation
from edlm_jax.decoding.modes import MODES, Mode, parse_mode
from edlm_jax.decoding.requests import RequestSettings
from edlm_jax.decoding.sampling import Sampling

__all__ = ["MODES", "Decoder", "Engine", "Event", "Generation", "Mode", "RequestSettings", "Sampling", "check_settings"]
__all__ += ["generate", "parse_mode", "refuse_prompts"]
