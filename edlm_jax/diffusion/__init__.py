"""The method: noise (what hides, and how much), streams (what columns a row has), terms (what is summed into the loss).

It stands on attention alone: models are arguments here.
"""

from edlm_jax.diffusion.masks import corrupt
from edlm_jax.diffusion.noise import Corruption, example_keys
from edlm_jax.diffusion.streams import Batch, Layout
from edlm_jax.diffusion.terms import diffusion_loss

__all__ = ["Batch", "Corruption", "Layout", "corrupt", "diffusion_loss", "example_keys"]
