"""Corruption (noise levels, position-weighted masks) and objective (targets, loss)."""

from edlm_jax.diffusion.corruption import EPSILON, choose_copies, corrupt, draw_masks
from edlm_jax.diffusion.objective import (
    cross_entropy,
    diffusion_loss,
    next_token_targets,
    shift_right,
    weighted_sum,
)

__all__ = [
    "EPSILON",
    "choose_copies",
    "corrupt",
    "cross_entropy",
    "diffusion_loss",
    "draw_masks",
    "next_token_targets",
    "shift_right",
    "weighted_sum",
]
