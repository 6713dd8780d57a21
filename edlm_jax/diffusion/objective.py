"""What is learned: cross-entropy of the masked tokens over the noise level (arXiv 2512.14067, section 3.1)."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int


def diffusion_loss(
    logits_BLV: Float[Array, "B L V"],
    targets_BL: Int[Array, "B L"],
    masked_BL: Bool[Array, "B L"],
    noise_level_BL: Float[Array, "B L"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(sum of ce / t over masked positions, their number): add both over the global batch, then divide once."""
    return weighted_sum(cross_entropy(logits_BLV, targets_BL) / noise_level_BL, masked_BL)


def next_token_targets(tokens_BL, loss_mask_BL, segment_ids_BL):
    """(targets, mask) with position i predicting token i + 1 of the same document, where that token carries loss."""
    targets_BL = jnp.roll(tokens_BL, -1, axis=1)
    same_BL = segment_ids_BL == jnp.roll(segment_ids_BL, -1, axis=1)
    inside_L = jnp.arange(tokens_BL.shape[1]) < tokens_BL.shape[1] - 1
    return targets_BL, jnp.roll(loss_mask_BL, -1, axis=1).astype(bool) & same_BL & inside_L[None]


def shift_right(logits_BLV):
    """Shifted alignment (Dream): logit i - 1 predicts token i. Position 0 has nothing before it and keeps its own."""
    return jnp.concatenate([logits_BLV[:, :1], logits_BLV[:, :-1]], axis=1)


def cross_entropy(logits_BLV, targets_BL):
    """float32[B, L] negative log-likelihood in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits_BLV.astype(jnp.float32), targets_BL)


def weighted_sum(values_BL, mask_BL):
    """(sum of values where the mask holds, how many): masked-out values may be anything finite."""
    return jnp.where(mask_BL, values_BL, 0.0).sum(), mask_BL.sum(dtype=jnp.float32)
