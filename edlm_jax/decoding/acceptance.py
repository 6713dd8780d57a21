"""Which tokens to propose and which to keep: small pure functions, one denoising step at a time.

Shapes: B rows, C positions of the block, V vocabulary. A rule is a value with a number in it: rules of one kind share a
compiled program, whatever the number. Every rule keeps at least one masked position a step, so that a block ends.

    confidence  .99  .40  .95  .70      masked  yes  yes  no  yes
    Threshold(.9) keeps the first;  Fixed(2) the first and the last;  Prefix(.3) the first two, for the third is done
"""

from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp

from edlm_jax.errors import InputError

NEVER = -jnp.inf


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Proposal:
    """What one forward proposes for each position; what a rule does not read is never computed."""

    tokens_BC: jax.Array
    confidence_BC: jax.Array  # probability of the token
    margin_BC: jax.Array  # the highest probability less the second
    entropy_BC: jax.Array  # nats


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: greedily, or by Gumbel-max among the `top_k` best (0: all) that hold `top_p` (1: all).

    The probabilities that rules read are the model's own or, with `drawn_confidence`, those that tokens are drawn by,
    after temperature, `top_k` and `top_p` (SDAR, Dream, Fast-dLLM v2). Of greedy tokens they are always the model's
    own: a distribution of one token would make every confidence 1.
    """

    greedy: bool = True
    top_k: int = 0
    top_p: float = 1.0
    drawn_confidence: bool = False

    def propose(self, logits_BCV, keys_B, count_B, temperature, *, banned_id: int | None) -> Proposal:
        """Tokens for each position; `banned_id`, the mask token, is never one.

        A row's noise depends on its key and on how many forwards or tokens it has had: it is the same in any batch.
        """
        if banned_id is not None:
            logits_BCV = jnp.where(jnp.arange(logits_BCV.shape[-1]) == banned_id, NEVER, logits_BCV)
        log_p_BCV = jax.nn.log_softmax(logits_BCV)
        scores_BCV = logits_BCV
        if not self.greedy:
            keys_B = jax.vmap(jax.random.fold_in)(keys_B, count_B)
            noise_BCV = jax.vmap(lambda key: jax.random.gumbel(key, logits_BCV.shape[1:]))(keys_B)
            narrow_BCV = _narrow(logits_BCV, temperature, self.top_k, self.top_p)
            # Temperature 0 inside a sampling program is greedy: the noise is dropped instead of dividing by zero.
            scores_BCV = narrow_BCV + temperature * noise_BCV
            if self.drawn_confidence:
                drawn_BCV = jax.nn.log_softmax(narrow_BCV / jnp.maximum(temperature, 1e-6))
                log_p_BCV = jnp.where(temperature > 0, drawn_BCV, log_p_BCV)
        tokens_BC = jnp.argmax(scores_BCV, axis=-1).astype(jnp.int32)
        chosen_BC = jnp.take_along_axis(log_p_BCV, tokens_BC[..., None], axis=-1)[..., 0]
        two_best_BC2 = jax.lax.top_k(log_p_BCV, 2)[0]
        return Proposal(
            tokens_BC=tokens_BC,
            confidence_BC=jnp.exp(chosen_BC),
            margin_BC=jnp.exp(two_best_BC2[..., 0]) - jnp.exp(two_best_BC2[..., 1]),
            entropy_BC=-jnp.sum(jnp.exp(log_p_BCV) * jnp.where(log_p_BCV > NEVER, log_p_BCV, 0), axis=-1),
        )


def _narrow(logits_BCV, temperature, top_k, top_p):
    """`NEVER` outside the `top_k` best tokens and outside the smallest set that holds `top_p` at this temperature."""
    if top_k:
        least_BC1 = jax.lax.top_k(logits_BCV, min(top_k, logits_BCV.shape[-1]))[0][..., -1:]
        logits_BCV = jnp.where(logits_BCV >= least_BC1, logits_BCV, NEVER)
    if top_p < 1:
        best_first_BCV = -jnp.sort(-logits_BCV, axis=-1)
        p_BCV = jax.nn.softmax(best_first_BCV / jnp.maximum(temperature, 1e-6))
        inside_BCV = jnp.cumsum(p_BCV, axis=-1) - p_BCV < top_p  # what is better holds less than top_p: the best is in
        least_BC1 = jnp.min(jnp.where(inside_BCV, best_first_BCV, jnp.inf), axis=-1, keepdims=True)
        logits_BCV = jnp.where(logits_BCV >= least_BC1, logits_BCV, NEVER)
    return logits_BCV


class Rule:
    """`rule(proposal, masked_BC)` -> bool[B, C], the masked positions to keep."""

    low, high = 0.0, 1.0  # the range of a rule's number

    def check(self) -> None:
        """Raises InputError for a number out of its range."""
        for field in fields(self):
            value = getattr(self, field.name)
            if not self.low <= value <= self.high:
                raise InputError(f"{field.name} must lie in [{self.low:g}, {self.high:g}], not {value}")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Threshold(Rule):
    """The most confident, and all with at least this confidence (Fast-dLLM, arXiv 2505.22618; Efficient-DLM).

    1 is one token a step: no probability is truly 1, though float32 may round to it.
    """

    threshold: float

    def __call__(self, proposal: Proposal, masked_BC):
        sure_BC = (proposal.confidence_BC >= self.threshold) & (self.threshold < 1)
        return masked_BC & (sure_BC | _best(proposal.confidence_BC, masked_BC))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Factor(Rule):
    """The n most confident, for the largest n with (n + 1) (1 - the least of them) < factor (Fast-dLLM, section 3)."""

    factor: float
    high = float("inf")

    def __call__(self, proposal: Proposal, masked_BC):
        rank_BC = rank(proposal.confidence_BC, masked_BC)
        fits_BC = (rank_BC + 2) * (1 - proposal.confidence_BC) < self.factor
        best_BC = jnp.max(jnp.where(fits_BC & masked_BC, rank_BC, 0), axis=-1, keepdims=True)
        return masked_BC & (rank_BC <= best_BC)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fixed(Rule):
    """So many of the most confident: a block of C takes ceil(C / tokens) steps."""

    tokens: int
    low, high = 1, float("inf")

    def __call__(self, proposal: Proposal, masked_BC):
        return masked_BC & (rank(proposal.confidence_BC, masked_BC) < self.tokens)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EntropyBound(Rule):
    """By rising entropy, while all but the last hold at most this many nats (EB-Sampler, arXiv 2505.24857)."""

    entropy: float
    high = float("inf")

    def __call__(self, proposal: Proposal, masked_BC):
        rank_BC = rank(-proposal.entropy_BC, masked_BC)
        earlier_BCC = (rank_BC[:, None, :] < rank_BC[:, :, None]) & masked_BC[:, None, :]
        before_BC = jnp.sum(jnp.where(earlier_BCC, proposal.entropy_BC[:, None, :], 0), axis=-1)
        return masked_BC & ((before_BC <= self.entropy) | (rank_BC < 1))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Margin(Rule):
    """The widest margin over the second best token, and all of at least this one."""

    margin: float

    def __call__(self, proposal: Proposal, masked_BC):
        return masked_BC & ((proposal.margin_BC >= self.margin) | _best(proposal.margin_BC, masked_BC))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prefix(Rule):
    """From the first masked position to the right, while the confidence is at least this (MARS, arXiv 2604.07023)."""

    prefix: float

    def __call__(self, proposal: Proposal, masked_BC):
        first_BC = masked_BC & (jnp.cumsum(masked_BC, axis=-1) == 1)
        goes_on_BC = first_BC | ~masked_BC | (proposal.confidence_BC >= self.prefix)
        return masked_BC & (jnp.cumsum(~goes_on_BC, axis=-1) == 0)


RULES = {
    "threshold": Threshold,
    "factor": Factor,
    "fixed": Fixed,
    "entropy": EntropyBound,
    "margin": Margin,
    "prefix": Prefix,
}


def parse_rule(text: str) -> Rule:
    """A rule from "name:number", as the command line has it: threshold:0.9, factor:1, fixed:2, entropy:0.1."""
    name, _, number = text.partition(":")
    if name not in RULES:
        raise InputError(f"rule {name!r} is unknown; choose one of {', '.join(RULES)}, as in threshold:0.9")
    try:
        rule = RULES[name](int(number) if name == "fixed" else float(number))
    except ValueError:
        raise InputError(f"rule {text!r} needs a number after the colon, as in threshold:0.9 or fixed:2") from None
    rule.check()
    return rule


def _best(score_BC, masked_BC):
    """bool[B, C]: the masked position with the highest score, the first of equals."""
    best_B1 = jnp.argmax(jnp.where(masked_BC, score_BC, NEVER), axis=-1, keepdims=True)
    return jnp.arange(score_BC.shape[-1])[None] == best_B1


def rank(score_BC, masked_BC):
    """int32[B, C]: 0 for the highest score among masked positions, ties by position; the others come last."""
    score_BC = jnp.where(masked_BC, score_BC, NEVER)
    return jnp.argsort(jnp.argsort(-score_BC, axis=-1), axis=-1)
