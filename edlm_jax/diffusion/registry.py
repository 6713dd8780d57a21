"""The kinds of noise and the terms of the loss that a config may name. A new one is its own file and a line here."""

from collections.abc import Callable

from edlm_jax.diffusion.certainty import Certainty
from edlm_jax.diffusion.distillation import KullbackLeibler, TopKullbackLeibler, TotalVariation
from edlm_jax.diffusion.masks import Complementary, FullMasks, masks
from edlm_jax.diffusion.noise import Noise
from edlm_jax.diffusion.own_guesses import OwnGuesses, Recovery
from edlm_jax.diffusion.terms import MaskedTokens, NextToken, Term
from edlm_jax.diffusion.uniform_tokens import UniformTokens
from edlm_jax.diffusion.unweighted import CrossEntropy

# config.objective.noise: (mask_id, vocabulary, half_life) -> noise.
NOISES: dict[str, Callable[[int, int, float | None], Noise]] = {
    "masks": lambda mask_id, vocabulary, half_life: masks(mask_id, half_life),
    "complementary": lambda mask_id, vocabulary, half_life: Complementary(mask_id, masks(mask_id, half_life)),
    "full_masks": lambda mask_id, vocabulary, half_life: FullMasks(mask_id),
    "uniform_tokens": lambda mask_id, vocabulary, half_life: UniformTokens(mask_id, vocabulary),
    "own_guesses": lambda mask_id, vocabulary, half_life: OwnGuesses(mask_id),
}

# config.objective.NAME_weight is the term's weight, by its own name.
_TERMS = (NextToken, MaskedTokens, CrossEntropy, Recovery, Certainty)
_TERMS += (TotalVariation, KullbackLeibler, TopKullbackLeibler)
TERMS: dict[str, type[Term]] = {term.name: term for term in _TERMS}
