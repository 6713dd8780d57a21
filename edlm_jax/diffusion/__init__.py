"""The method: noise (what hides, and how much), streams (what columns a row has), terms (what is summed into the loss).

It stands on attention alone: models are arguments here.
"""

from edlm_jax.diffusion.masks import EPSILON, corrupt
from edlm_jax.diffusion.noise import Corruption, Noise, choose_copies, example_keys
from edlm_jax.diffusion.streams import Batch, Layout, Streams, find_layout, next_token_targets, shift_right
from edlm_jax.diffusion.terms import Term, cross_entropy, diffusion_loss, weighted_sum

__all__ = [
    "EPSILON",
    "Batch",
    "Corruption",
    "Layout",
    "Noise",
    "Streams",
    "Term",
    "choose_copies",
    "corrupt",
    "cross_entropy",
    "diffusion_loss",
    "example_keys",
    "find_layout",
    "next_token_targets",
    "shift_right",
    "weighted_sum",
]
