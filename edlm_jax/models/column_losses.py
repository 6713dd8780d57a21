"""What is computed of a column's logits, and its gradient: values that head.py takes through the vocabulary.

Shapes: B rows, C columns of a chunk, V this device's part of the vocabulary.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Scores(NamedTuple):
    """float32 logits of a chunk, of this device's part of the vocabulary."""

    logits_BCV: jax.Array
    teacher_BCV: jax.Array | None  # its logits, or, of `Shares`, what part of 1 each token has
    hit_BCV: jax.Array | None  # where the target is
    first: jax.Array | int  # the first token of this part
    vocabulary: tuple[str, ...]  # mesh axes that split it

    def sum(self, *parts_BCV) -> tuple[jax.Array, ...]:
        """Of each, [B, C, 1] over the whole vocabulary."""
        return jax.lax.psum(tuple(x_BCV.sum(-1, keepdims=True) for x_BCV in parts_BCV), self.vocabulary)

    def top(self, logits_BCV) -> jax.Array:
        """[B, C, 1]: the largest."""
        return jax.lax.pmax(logits_BCV.max(-1, keepdims=True), self.vocabulary)

    def best(self, logits_BCV, k: int) -> tuple[jax.Array, jax.Array]:
        """([B, C, k]: the largest, or all if there are fewer, the largest first, whose they are)."""
        best_BCK, token_BCK = jax.lax.top_k(logits_BCV, min(k, logits_BCV.shape[-1]))
        token_BCK += self.first
        if self.vocabulary:
            gather = lambda x_BCK: jax.lax.all_gather(x_BCK, self.vocabulary, axis=2, tiled=True)  # noqa: E731
            best_BCK, token_BCK = gather(best_BCK), gather(token_BCK)
            best_BCK, place_BCK = jax.lax.top_k(best_BCK, min(k, best_BCK.shape[-1]))
            token_BCK = jnp.take_along_axis(token_BCK, place_BCK, axis=2)
        return best_BCK, token_BCK


class ColumnLoss:
    """What is computed of each column; a hashable value. What is of a column is [B, C, 1]."""

    def value(self, scores: Scores) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        """(values that come out, stats that are kept for the backward pass)"""
        raise NotImplementedError

    def slope(self, scores: Scores, stats, gradients) -> jax.Array:
        """The gradient of the logits, from that of each value."""
        raise NotImplementedError


@dataclass(frozen=True)
class CrossEntropy(ColumnLoss):
    """Nats of the target."""

    def value(self, scores):
        top_BC1 = scores.top(scores.logits_BCV)
        hit_BCV = jnp.where(scores.hit_BCV, scores.logits_BCV, 0)
        total_BC1, target_BC1 = scores.sum(jnp.exp(scores.logits_BCV - top_BC1), hit_BCV)
        lse_BC1 = top_BC1 + jnp.log(total_BC1)
        return (lse_BC1 - target_BC1,), (lse_BC1,)

    def slope(self, scores, stats, gradients):
        return (jnp.exp(scores.logits_BCV - stats[0]) - scores.hit_BCV) * gradients[0]


@dataclass(frozen=True)
class Shares(ColumnLoss):
    """Nats of tokens that have a share of the column each."""

    def value(self, scores):
        lse_BC1, (mass_BC1,) = _log_sum(scores, scores.logits_BCV), scores.sum(scores.teacher_BCV)
        return scores.sum(scores.teacher_BCV * (lse_BC1 - scores.logits_BCV)), (lse_BC1, mass_BC1)

    def slope(self, scores, stats, gradients):
        return (jnp.exp(scores.logits_BCV - stats[0]) * stats[1] - scores.teacher_BCV) * gradients[0]


@dataclass(frozen=True)
class Divergence(ColumnLoss):
    """Total variation, half of |p - q|, and KL(p || q), of a teacher's p and q; KL over p's `best` tokens, or all."""

    best: int = 0

    def value(self, scores):
        lse_q_BC1, lse_p_BC1 = (_log_sum(scores, x_BCV) for x_BCV in (scores.logits_BCV, scores.teacher_BCV))
        least_BC1 = jnp.full_like(lse_p_BC1, -jnp.inf)
        if self.best:
            least_BC1 = scores.best(scores.teacher_BCV, self.best)[0][..., -1:]
        q_BCV, p_BCV, kept_BCV = self._distributions(scores, lse_q_BC1, lse_p_BC1, least_BC1)
        log_ratio_BCV = (scores.teacher_BCV - lse_p_BC1) - (scores.logits_BCV - lse_q_BC1)
        sign_BCV = jnp.sign(q_BCV - p_BCV)
        l1_BC1, tilt_BC1, kl_BC1, mass_BC1 = scores.sum(
            sign_BCV * (q_BCV - p_BCV), sign_BCV * q_BCV, kept_BCV * log_ratio_BCV, kept_BCV
        )
        return (l1_BC1 / 2, kl_BC1), (lse_q_BC1, lse_p_BC1, least_BC1, tilt_BC1, mass_BC1)

    def slope(self, scores, stats, gradients):
        *of_distributions, tilt_BC1, mass_BC1 = stats
        q_BCV, p_BCV, kept_BCV = self._distributions(scores, *of_distributions)
        d_tv_BCV = q_BCV * (jnp.sign(q_BCV - p_BCV) - tilt_BC1) / 2
        return gradients[0] * d_tv_BCV + gradients[1] * (q_BCV * mass_BC1 - kept_BCV)

    def _distributions(self, scores, lse_q_BC1, lse_p_BC1, least_BC1):
        q_BCV, p_BCV = jnp.exp(scores.logits_BCV - lse_q_BC1), jnp.exp(scores.teacher_BCV - lse_p_BC1)
        return q_BCV, p_BCV, jnp.where(scores.teacher_BCV >= least_BC1, p_BCV, 0) if self.best else p_BCV


@dataclass(frozen=True)
class Certainty(ColumnLoss):
    """The entropy, in nats, where the best token is the target; else 0."""

    def value(self, scores):
        lse_BC1, hit_BCV = _log_sum(scores, scores.logits_BCV), jnp.where(scores.hit_BCV, scores.logits_BCV, 0)
        nats_BCV = jnp.exp(scores.logits_BCV - lse_BC1) * (lse_BC1 - scores.logits_BCV)
        entropy_BC1, target_BC1 = scores.sum(nats_BCV, hit_BCV)
        right_BC1 = (target_BC1 >= scores.top(scores.logits_BCV)).astype(jnp.float32)
        return (right_BC1 * entropy_BC1,), (lse_BC1, entropy_BC1, right_BC1)

    def slope(self, scores, stats, gradients):
        lse_BC1, entropy_BC1, right_BC1 = stats
        log_q_BCV = scores.logits_BCV - lse_BC1
        return -jnp.exp(log_q_BCV) * (log_q_BCV + entropy_BC1) * right_BC1 * gradients[0]


def _log_sum(scores: Scores, logits_BCV):
    """[B, C, 1]: log of the sum of exponentials."""
    top_BC1 = scores.top(logits_BCV)
    return top_BC1 + jnp.log(*scores.sum(jnp.exp(logits_BCV - top_BC1)))
