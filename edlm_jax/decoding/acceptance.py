"""Which tokens to propose and which to keep: small pure functions, one denoising step at a time.

Shapes: B rows, C positions of the block, V vocabulary. A rule is a value with a number in it: rules of one kind share a
compiled program, whatever the number. Every rule keeps at least one masked position a step, so that a block ends.

    confidence  .99  .40  .95  .70      masked  yes  yes  no  yes
    Threshold(.9) keeps the first;  Fixed(2) the first and the last;  Prefix(.3) the first two, for the third is done
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp

from edlm_jax.decoding.sampling import Proposal
from edlm_jax.errors import InputError, check_range


@dataclass(frozen=True)
class Rule:
    """`rule(proposal, masked_BC)` -> bool[B, C], the masked positions to keep."""

    low, high = 0.0, 1.0  # the range of a rule's number

    def __call__(self, proposal: Proposal, masked_BC) -> jax.Array:
        raise NotImplementedError

    def __str__(self) -> str:
        """As `parse_rule` reads it."""
        (number,) = (getattr(self, field.name) for field in fields(self))
        return f"{next(name for name, kind in RULES.items() if kind is type(self))}:{number}".removesuffix(".0")

    def check(self) -> None:
        """Raises InputError for a number out of its range."""
        for field in fields(self):
            check_range(field.name, getattr(self, field.name), self.low, self.high)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Threshold(Rule):
    """The most confident, and all with at least this confidence (Fast-dLLM, arXiv 2505.22618; Efficient-DLM).

    1 is one token a step: no probability is truly 1, though float32 may round to it.
    """

    threshold: float

    def __call__(self, proposal: Proposal, masked_BC):
        return masked_BC & (self.sure(proposal) | _best(proposal.confidence_BC, masked_BC))

    def sure(self, proposal: Proposal) -> jax.Array:
        """bool[B, C]: the positions with at least this confidence."""
        return (proposal.confidence_BC >= self.threshold) & (self.threshold < 1)


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
        return leftmost(proposal.confidence_BC >= self.prefix, masked_BC)


RULES: dict[str, Callable[..., Rule]] = {
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
    best_B1 = jnp.argmax(jnp.where(masked_BC, score_BC, -jnp.inf), axis=-1, keepdims=True)
    return jnp.arange(score_BC.shape[-1])[None] == best_B1


def leftmost(sure_BC, masked_BC):
    """bool[B, C]: the first masked position, and those after it as far as all are sure."""
    first_BC = masked_BC & (jnp.cumsum(masked_BC, axis=-1) == 1)
    goes_on_BC = first_BC | ~masked_BC | sure_BC
    return masked_BC & (jnp.cumsum(~goes_on_BC, axis=-1) == 0)


def rank(score_BC, masked_BC):
    """int32[B, C]: 0 for the highest score among masked positions, ties by position; the others come last."""
    score_BC = jnp.where(masked_BC, score_BC, -jnp.inf)
    return jnp.argsort(jnp.argsort(-score_BC, axis=-1), axis=-1)
