"""How tokens are drawn, and what one forward proposes for each position.

Shapes: B rows, C positions, V vocabulary.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from edlm_jax.errors import InputError, check_range
from edlm_jax.models.spec import CONFIDENCES, Conversion


@dataclass(frozen=True)
class Sampling:
    """Greedy at temperature 0, else by Gumbel-max among the `top_k` best (0: all) that hold `top_p` (1: all).

    `confidence` is what acceptance rules compare: "raw", the model's own probabilities, or "drawn", those that tokens
    are drawn by. None is what the checkpoint's own code does.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    confidence: str | None = None

    def check(self) -> None:
        """Raises InputError for a number out of its range."""
        check_range("temperature", self.temperature, 0, 1e30)  # times the noise, float32 has it
        check_range("top_k", self.top_k, 0, 2**31 - 1)
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must lie in (0, 1], not {self.top_p}")
        if self.confidence not in (None, *CONFIDENCES):
            raise InputError(f"confidence {self.confidence!r} is unknown; choose one of {', '.join(CONFIDENCES)}")
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            what = "top_k and top_p choose what is sampled from: at temperature 0 they change nothing"
            warnings.warn(what, stacklevel=4)

    def draw(self, conversion: Conversion | None) -> "Draw":
        """What a compiled program depends on: all but the temperature."""
        confidence = self.confidence or (conversion.confidence if conversion else "raw")
        return Draw(False, self.top_k, self.top_p, confidence == "drawn") if self.temperature > 0 else Draw()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Proposal:
    """What one forward proposes for each position; what a rule does not read is never computed."""

    tokens_BC: jax.Array
    confidence_BC: jax.Array  # probability of the token
    margin_BC: jax.Array  # the highest probability less the second
    entropy_BC: jax.Array  # nats


@dataclass(frozen=True)
class Draw:
    """How tokens are drawn: greedily, or by Gumbel-max among the `top_k` best (0: all) that hold `top_p` (1: all).

    The probabilities that rules read are the model's own or, with `drawn_confidence`, those that tokens are drawn by,
    after temperature, `top_k` and `top_p` (SDAR, Dream, Fast-dLLM v2). Of greedy tokens they are always the model's
    own: a distribution of one token would make every confidence 1.
    """

    greedy: bool = True
    top_k: int = 0
    top_p: float = 1.0
    drawn_confidence: bool = False

    def choose(self, logits_BTV, keys_BT, temperature) -> jax.Array:
        """int32[B, T]: the best tokens, or one drawn at each position by the position's own key."""
        scores_BTV = self.scores(logits_BTV, lambda: gumbel(keys_BT, logits_BTV.shape[-1]), temperature)
        return best_token(scores_BTV)

    def scores(self, logits_BTV, noise: Callable[[], jax.Array], temperature) -> jax.Array:
        """float32[B, T, V]: the highest of a position is its token; the noise is that of Gumbel-max."""
        if self.greedy:
            return logits_BTV
        temperature, *best = self.numbers(temperature)
        # Temperature 0 inside a sampling program is greedy: the noise is dropped instead of dividing by zero.
        return _narrow(logits_BTV, temperature, *best) + temperature * noise()

    def log_p(self, logits_BTV, temperature) -> jax.Array:
        """float32[B, T, V]: log-probabilities that tokens are drawn by."""
        temperature, *best = self.numbers(temperature)
        return jax.nn.log_softmax(_narrow(logits_BTV, temperature, *best) / jnp.maximum(temperature, 1e-6))

    def numbers(self, temperature):
        """(temperature, top_k, top_p)."""
        return temperature, self.top_k, self.top_p

    def if_drawn(self, temperature, drawn: Callable, greedy: Callable):
        """`drawn()`, where anything is drawn, or what it gives where nothing is."""
        return greedy() if self.greedy else drawn()

    def propose(self, logits_BCV, keys_B, count_B, temperature, *, banned_id: int | None) -> Proposal:
        """Tokens for each position; `banned_id`, the mask token, is never one.

        A row's noise depends on its key and on how many forwards or tokens it has had: it is the same in any batch.
        Logits that are no numbers have some other token, of confidence 0: a block ends whatever a model says.
        """
        if banned_id is not None:
            logits_BCV = jnp.where(jnp.arange(logits_BCV.shape[-1]) == banned_id, -jnp.inf, logits_BCV)
        log_p_BCV = jax.nn.log_softmax(logits_BCV)

        def noise_BCV():
            folded_B = jax.vmap(jax.random.fold_in)(keys_B, count_B)
            return jax.vmap(lambda key: jax.random.gumbel(key, logits_BCV.shape[1:]))(folded_B)

        tokens_BC = best_token(self.scores(logits_BCV, noise_BCV, temperature))
        if banned_id is not None:  # of NaNs the last token is taken, which may be this one
            tokens_BC = jnp.where(tokens_BC == banned_id, int(banned_id == 0), tokens_BC)
        if self.drawn_confidence:
            drawn_BCV = self.log_p(logits_BCV, temperature)
            log_p_BCV = jnp.where(self.numbers(temperature)[0] > 0, drawn_BCV, log_p_BCV)
        chosen_BC = jnp.take_along_axis(log_p_BCV, tokens_BC[..., None], axis=-1)[..., 0]
        two_best_BC2 = jax.lax.top_k(log_p_BCV, 2)[0]
        return Proposal(
            tokens_BC=tokens_BC,
            confidence_BC=jnp.nan_to_num(jnp.exp(chosen_BC)),
            margin_BC=jnp.nan_to_num(jnp.exp(two_best_BC2[..., 0]) - jnp.exp(two_best_BC2[..., 1])),
            entropy_BC=jnp.nan_to_num(
                -jnp.sum(jnp.exp(log_p_BCV) * jnp.where(log_p_BCV > -jnp.inf, log_p_BCV, 0), axis=-1)
            ),
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowSampling:
    """How each row draws, as `Sampling` says it."""

    temperature_B11: jax.Array | np.ndarray
    top_k_B11: jax.Array | np.ndarray
    top_p_B11: jax.Array | np.ndarray


@dataclass(frozen=True)
class RowDraw(Draw):
    """Draws by a `RowSampling` in the temperature's place: each row as it would alone, greedy ones among them.

    Where all rows are greedy nothing is drawn, sorted or weighed.
    """

    greedy: bool = False

    def scores(self, logits_BTV, noise, temperature) -> jax.Array:
        drawn = lambda: super(RowDraw, self).scores(logits_BTV, noise, temperature)  # noqa: E731
        return self.if_drawn(temperature, drawn, lambda: logits_BTV)

    def log_p(self, logits_BTV, temperature) -> jax.Array:
        """Greedily, the best token has it all."""

        def drawn():
            best_BTV = jnp.log(jax.nn.one_hot(best_token(logits_BTV), logits_BTV.shape[-1]))
            drawn_BTV = super(RowDraw, self).log_p(logits_BTV, temperature)
            return jnp.where(temperature.temperature_B11 > 0, drawn_BTV, best_BTV)

        return self.if_drawn(temperature, drawn, lambda: jnp.zeros_like(logits_BTV))

    def numbers(self, temperature):
        return temperature.temperature_B11, temperature.top_k_B11, temperature.top_p_B11

    def if_drawn(self, temperature, drawn, greedy):
        return jax.lax.cond((temperature.temperature_B11 > 0).any(), drawn, greedy)


def best_token(scores_V) -> jax.Array:
    """int32[...]: the token with the highest score, the first of equals, over the last axis.

    It is argmax, which XLA computes on CPU as one loop over pairs, four times as slow as these two over numbers.
    """
    V, best_1 = scores_V.shape[-1], scores_V.max(axis=-1, keepdims=True)
    tokens_V = jax.lax.broadcasted_iota(jnp.int32, scores_V.shape, scores_V.ndim - 1)
    return jnp.minimum(jnp.where(scores_V == best_1, tokens_V, V).min(axis=-1), V - 1)  # of NaNs the last


def gumbel(keys_BT, V: int) -> jax.Array:
    """float32[B, T, V]: noise of each position's own key."""
    return jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (V,))))(keys_BT)


def _narrow(logits_BCV, temperature, top_k, top_p):
    """Minus infinity outside the `top_k` best tokens and the smallest set that holds `top_p` at this temperature.

    The numbers are those of all rows or, [B, 1, 1], each row's own. A sort takes longer than all the rest of a drawing,
    on CPU above all, so there is none where no row asks for it.
    """
    if isinstance(top_k, int):
        if top_p < 1:
            return _narrow_by_sort(logits_BCV, temperature, top_k, top_p)
        least_BC1 = jax.lax.top_k(logits_BCV, min(top_k, logits_BCV.shape[-1]))[0][..., -1:] if top_k else -jnp.inf
        return jnp.where(logits_BCV >= least_BC1, logits_BCV, -jnp.inf)
    asked = ((temperature > 0) & ((top_k > 0) | (top_p < 1))).any()
    sort = lambda: _narrow_by_sort(logits_BCV, temperature, top_k, top_p)  # noqa: E731
    return jax.lax.cond(asked, sort, lambda: logits_BCV)


def _narrow_by_sort(logits_BCV, temperature, top_k, top_p):
    V = logits_BCV.shape[-1]
    best_first_BCV = -jnp.sort(-logits_BCV, axis=-1)
    last = jnp.where(top_k > 0, jnp.minimum(top_k, V), V) - 1
    least_BC1 = jnp.take_along_axis(best_first_BCV, jnp.broadcast_to(last, (*logits_BCV.shape[:2], 1)), axis=-1)
    best_first_BCV = jnp.where(best_first_BCV >= least_BC1, best_first_BCV, -jnp.inf)
    p_BCV = jax.nn.softmax(best_first_BCV / jnp.maximum(temperature, 1e-6))
    # What is better holds less than top_p: the best is in.
    least_p = jnp.maximum(top_p, np.finfo(np.float32).tiny)  # float32 may have none between top_p and 0
    inside_BCV = (jnp.cumsum(p_BCV, axis=-1) - p_BCV < least_p) | (top_p >= 1)
    held_BC1 = jnp.min(jnp.where(inside_BCV, best_first_BCV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_BCV >= jnp.maximum(least_BC1, held_BC1), logits_BCV, -jnp.inf)
