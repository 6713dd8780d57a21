"""The model's own guesses as noise, and a loss that teaches it to take them back (OPUT of DMax, arXiv 2604.08302)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from edlm_jax.diffusion.noise import Corruption, Noise
from edlm_jax.diffusion.streams import Streams, learnable
from edlm_jax.diffusion.terms import CrossEntropy

_FLAG, _LEVEL = 2**31 - 2, 2**31 - 3  # keys of their own, far from those that rows and steps have


@dataclass(frozen=True)
class OwnGuesses(Noise):
    """Masks, as many as a row's level of `levels` says; in half of the rows a guess then takes each one's place."""

    levels: tuple[float, float] = (0.75, 0.75)

    def hide(self, key, corruptible_L, block_length):
        level = jax.random.uniform(jax.random.fold_in(key, _LEVEL), (), jnp.float32, *self.levels)
        hit_L = jax.random.uniform(key, corruptible_L.shape) < level
        return hit_L & corruptible_L, jnp.full(corruptible_L.shape, level)

    def corrupt(self, keys_B, *args, **sizes) -> Corruption:
        """Guesses are made where the model is at hand."""
        guesses_B = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, _FLAG)))(keys_B)
        corruption = super().corrupt(keys_B, *args, **sizes)
        return corruption._replace(guessed_BM=corruption.masked_BM & guesses_B[:, None])


@dataclass(frozen=True)
class Recovery(CrossEntropy):
    """The mean of ce over all tokens that carry loss, noise or not."""

    name = "recovery"

    def wanted(self, streams: Streams) -> jax.Array:
        return streams.predicted(streams.corruption.copied(learnable(streams.batch)))
