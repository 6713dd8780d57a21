"""The method: noise (what hides, and how much), streams (what columns a row has), terms (what is summed into the loss).

It stands on attention alone: models are arguments here.
"""

from edlm_jax.diffusion.masks import EPSILON, corrupt
from edlm_jax.diffusion.noise import Corruption, choose_copies, example_keys
from edlm_jax.diffusion.streams import Batch, Layout, find_layout, next_token_targets, shift_right
from edlm_jax.diffusion.terms import diffusion_loss

__all__ = [
    "EPSILON",
    "Batch",
    "Corruption",
    "Layout",
    "choose_copies",
    "corrupt",
    "diffusion_loss",
    "example_keys",
    "find_layout",
    "next_token_targets",
    "shift_right",
]
