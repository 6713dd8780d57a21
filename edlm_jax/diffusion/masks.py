"""Masks: the noise that hides tokens behind the mask token, by how levels and positions are drawn."""

import dataclasses
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from edlm_jax.diffusion.noise import Noise, example_keys
from edlm_jax.errors import InputError

EPSILON = 1e-3  # the least noise level: t ~ U(EPSILON, 1)


@dataclass(frozen=True)
class UniformRow(Noise):
    """The uniform baseline: one t per row, every position masked independently with probability t."""

    def hide(self, key, corruptible_L, block_length):
        level_key, mask_key = jax.random.split(key)
        level = jax.random.uniform(level_key, (), minval=EPSILON, maxval=1.0)
        hit_L = jax.random.uniform(mask_key, corruptible_L.shape) < level
        return hit_L & corruptible_L, jnp.broadcast_to(level, corruptible_L.shape)


@dataclass(frozen=True)
class FullMasks(Noise):
    """Every token that carries loss is hidden, at t = 1."""

    def hide(self, key, corruptible_L, block_length):
        return corruptible_L, jnp.ones(corruptible_L.shape)


@dataclass(frozen=True)
class Rightmost(Noise):
    """Each block draws t and hides the rightmost k = round(t * n) of its n corruptible positions."""

    def hide(self, key, corruptible_L, block_length):
        level_key, score_key = jax.random.split(key)
        corruptible_NC = jnp.pad(corruptible_L, (0, -len(corruptible_L) % block_length)).reshape(-1, block_length)
        level_N1 = self.levels(level_key, len(corruptible_NC))[:, None]
        count_N1 = jnp.round(level_N1 * corruptible_NC.sum(-1, keepdims=True))
        score_NC = jnp.where(corruptible_NC, self.scores(score_key, level_N1, block_length), -jnp.inf)
        masked_NC = (rank(-score_NC) < count_N1) & corruptible_NC
        columns = masked_NC, jnp.broadcast_to(level_N1, masked_NC.shape)
        return tuple(x_NC.reshape(-1)[: len(corruptible_L)] for x_NC in columns)

    def levels(self, key, N):
        """t of each block."""
        return jax.random.uniform(key, (N,), minval=EPSILON, maxval=1.0)

    def scores(self, key, level_N1, C):
        """Of each position in a block: the highest hide first."""
        return jnp.arange(C, dtype=jnp.float32)[None]


@dataclass(frozen=True)
class PositionWeighted(Rightmost):
    """The k are drawn without replacement, with weights exp(beta * (1 - t) * i) for the i-th position of the block.

    beta = ln 2 / (half_life * C): at low noise the end of a block hides first, the order in which a decoder will not
    have got to it yet. One block of C = 8 at t = 0.5, half_life 0.1; `inf` is uniform within the block:

        position  0    1    2    3    4    5    6    7
        weight    1.0  1.5  2.4  3.7  5.7  8.7  13   21
        noisy     a    b    M    d    e    M    M    M       k = 4
    """

    half_life: float | jax.Array = 0.1  # as a fraction of the block

    def scores(self, key, level_N1, C):
        """log w_i(t) = beta * (1 - t) * i for i = 0..C-1, and Gumbel noise: the k highest are such a draw."""
        index_C = jnp.arange(C, dtype=jnp.float32)
        weight_NC = math.log(2) / (self.half_life * C) * (1 - level_N1) * index_C[None]
        return weight_NC + jax.random.gumbel(key, weight_NC.shape)

    def at(self, half_life) -> Noise:
        return dataclasses.replace(self, half_life=half_life)


@dataclass(frozen=True)
class EvenCounts(Noise):
    """Of each block's n corruptible positions k at random, k uniform in 1..n, at noise level k / n.

    Under it sum(ce / t) bounds the negative log-likelihood of what is decoded together (LLaDA, arXiv 2502.09992,
    equation 6), however a model was trained: what likelihoods and held-out losses are measured by.
    """

    def hide(self, key, corruptible_L, block_length):
        count_key, order_key = jax.random.split(key)
        corruptible_NC = corruptible_L.reshape(-1, block_length)
        n_N1 = corruptible_NC.sum(axis=1, keepdims=True)
        k_N1 = 1 + jnp.floor(jax.random.uniform(count_key, n_N1.shape) * n_N1).astype(int)
        k_N1 = jnp.minimum(k_N1, n_N1)
        order_NC = jnp.where(corruptible_NC, jax.random.uniform(order_key, corruptible_NC.shape), jnp.inf)
        level_NC = jnp.broadcast_to(1 / (n_N1 / jnp.maximum(k_N1, 1)), corruptible_NC.shape)
        return ((rank(order_NC) < k_N1) & corruptible_NC).reshape(-1), level_NC.reshape(-1)


@dataclass(frozen=True)
class Complementary(Noise):
    """Two copies of each block: the second hides what the first one shows, at 1 - t: each token is hidden once."""

    of: Noise  # what hides in the first

    views = 2

    def of_model(self, mask_id: int, vocabulary: int) -> Noise:
        return Complementary(mask_id, self.of.of_model(mask_id, vocabulary))

    def at(self, half_life) -> Noise:
        return dataclasses.replace(self, of=self.of.at(half_life))

    def hide(self, key, corruptible_L, block_length):
        masked_L, level_L = self.of.hide(key, corruptible_L, block_length)
        return jnp.concatenate([masked_L, corruptible_L & ~masked_L]), jnp.concatenate([level_L, 1 - level_L])


def masks(mask_id: int, half_life) -> Noise:
    """What a half-life stands for: `inf` is uniform within the block, 0 the rightmost k, None the uniform baseline.

    An array is taken to be positive: 0 is another program.
    """
    if half_life is None:
        return UniformRow(mask_id)
    if isinstance(half_life, jax.Array):
        return PositionWeighted(mask_id, half_life)
    if not half_life >= 0:
        raise InputError(f"half_life must be >= 0 (inf: uniform, 0: rightmost first) or None, not {half_life}")
    return PositionWeighted(mask_id, half_life) if half_life else Rightmost(mask_id)


def corrupt(
    key,
    tokens_BL: Int[Array, "B L"],
    corruptible_BL: Bool[Array, "B L"],
    *,
    block_length: int,
    mask_id: int,
    half_life: float | Float[Array, ""] | None = 0.1,
) -> tuple[Int[Array, "B L"], Bool[Array, "B L"], Float[Array, "B L"]]:
    """Masks tokens; returns (noisy tokens, what was masked, the noise level t of each position).

    Args:
      key: one key for the batch, or an array of B keys, one a row (what a micro-batched step passes).
      corruptible_BL: which positions may be masked (completions; never prompts or padding).
      block_length: C; the last block may be short.
      half_life: lambda of `PositionWeighted`, as a fraction of the block; what else it may say is in `masks`.
    """
    keys_B = key if key.ndim else example_keys(key, tokens_BL.shape[0])
    return masks(mask_id, half_life).corrupt(keys_B, tokens_BL, corruptible_BL, block_length)[:3]


def rank(x):
    """Of each value along the last axis, the number of smaller ones."""
    return jnp.argsort(jnp.argsort(x, axis=-1), axis=-1)
