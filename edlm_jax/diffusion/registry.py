"""The kinds of noise and the terms of the loss that a config may name. A new one is its own file and a line here."""

from collections.abc import Callable
from typing import Any

from edlm_jax.diffusion.cart import ContextAdaptive
from edlm_jax.diffusion.chain import Chain
from edlm_jax.diffusion.distillation import Drafts, KullbackLeibler, TopKullbackLeibler, TotalVariation
from edlm_jax.diffusion.masks import Complementary, FullMasks, masks
from edlm_jax.diffusion.noise import Noise
from edlm_jax.diffusion.own_guesses import OwnGuesses, Recovery
from edlm_jax.diffusion.taught import Taught
from edlm_jax.diffusion.terms import Certainty, CrossEntropy, MaskedTokens, NextToken, Term
from edlm_jax.diffusion.uniform_tokens import Mixed, UniformTokens
from edlm_jax.diffusion.visited import Visited

# config.objective.noise: (mask_id, vocabulary, config.objective) -> noise.
NOISES: dict[str, Callable[[int, int, Any], Noise]] = {
    "masks": lambda mask_id, vocabulary, o: masks(mask_id, o.half_life),
    "complementary": lambda mask_id, vocabulary, o: Complementary(mask_id, masks(mask_id, o.half_life)),
    "chain": lambda mask_id, vocabulary, o: Chain.of(mask_id, o.half_life, o.group),
    "full_masks": lambda mask_id, vocabulary, o: FullMasks(mask_id),
    "uniform_tokens": lambda mask_id, vocabulary, o: UniformTokens(mask_id, vocabulary),
    "mixed": lambda mask_id, vocabulary, o: Mixed(mask_id, vocabulary),
    "own_guesses": lambda mask_id, vocabulary, o: OwnGuesses(mask_id),
    "own_guesses_spread": lambda mask_id, vocabulary, o: OwnGuesses(mask_id, (0.5, 1.0)),
    "visited": lambda mask_id, vocabulary, o: Visited.read(mask_id, o.states, o.block_length),
}

# config.objective.NAME_weight is the term's weight, by its own name.
_TERMS = (NextToken, MaskedTokens, CrossEntropy, ContextAdaptive, Recovery, Certainty)
_TERMS += (TotalVariation, KullbackLeibler, TopKullbackLeibler, Drafts, Taught)
TERMS: dict[str, type[Term]] = {term.name: term for term in _TERMS}
