"""Random tokens: a token that is noise does not say so. At full noise (Uno, arXiv 2609.04010), or mixed with masks."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from edlm_jax.diffusion.masks import EPSILON, FullMasks

_PRIOR, _SHOWN = 2**31 - 1, 2**31 - 3  # keys of their own, far from those that rows and steps have
_LEAST = 1e-3  # of each probability of `Mixed`


@dataclass(frozen=True)
class UniformTokens(FullMasks):
    """Every token that carries loss becomes any token of the vocabulary but the mask, at t = 1."""

    vocabulary: int

    def prior(self, keys_B, tokens_BM, level_BM):
        draw = lambda key, row_M: jax.random.randint(  # noqa: E731
            jax.random.fold_in(key, _PRIOR), row_M.shape, 0, self.vocabulary - 1, row_M.dtype
        )
        drawn_BM = jax.vmap(draw)(keys_B, tokens_BM)
        return drawn_BM + (drawn_BM >= self.mask_id)


@dataclass(frozen=True)
class Mixed(UniformTokens):
    """A noisy token is hidden, or any token, or still itself, and none but the first says so (BARD, 2604.16514).

    With phi = pi t / 2: the mask with probability 1 - cos phi, any token with sin phi + cos phi - 1. The levels t of a
    row's N blocks are spread: (a permutation of 0..N-1, and a part of 1) over N.

        t        0.1    0.3    0.5    0.7    0.9
        mask     0.01   0.11   0.29   0.55   0.84
        random   0.14   0.35   0.41   0.35   0.14
        itself   0.84   0.55   0.29   0.11   0.01

    Loss is where noise was put, be it by chance the token itself.
    """

    def hide(self, key, corruptible_L, block_length):
        order_key, level_key, hide_key = jax.random.split(key, 3)
        N = len(corruptible_L) // block_length
        level_N = (jax.random.permutation(order_key, N) + jax.random.uniform(level_key, (N,))) / N
        level_N = jnp.maximum(level_N, EPSILON)
        level_L = jnp.repeat(level_N, block_length)
        mask_L, random_L = _probabilities(level_L)
        hit_L = jax.random.uniform(hide_key, corruptible_L.shape) < mask_L + random_L
        return hit_L & corruptible_L, level_L

    def prior(self, keys_B, tokens_BM, level_BM):
        mask_BM, random_BM = _probabilities(level_BM)
        draw = lambda key, row_M: jax.random.uniform(jax.random.fold_in(key, _SHOWN), row_M.shape)  # noqa: E731
        shown_BM = jax.vmap(draw)(keys_B, tokens_BM) < mask_BM / (mask_BM + random_BM)
        return jnp.where(shown_BM, self.mask_id, super().prior(keys_B, tokens_BM, level_BM))


def _probabilities(level_L):
    """(of the mask, of any token), with what is left to the token itself."""
    phi_L = jnp.pi / 2 * level_L
    parts = jnp.stack([1 - jnp.cos(phi_L), jnp.sin(phi_L) + jnp.cos(phi_L) - 1, 1 - jnp.sin(phi_L)])
    parts = jnp.maximum(parts, _LEAST)
    return tuple(parts[:2] / parts.sum(axis=0, keepdims=True))
