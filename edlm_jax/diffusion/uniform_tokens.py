"""Uniform random tokens at full noise: nothing of a block is left, and no token says so (Uno, arXiv 2609.04010)."""

from dataclasses import dataclass

import jax

from edlm_jax.diffusion.masks import FullMasks

_PRIOR = 2**31 - 1  # a key of its own, far from those that rows and steps have


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
