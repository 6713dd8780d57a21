"""Drafts and what stands of them: the text is AR's, greedy or drawn, whatever the drafts are (arXiv 2211.17192).

Shapes as in left_to_right.py, with D drafts and a window of D + 1 columns: the last settled token, then the drafts. Its
causal forward gives p, what AR says after each column. q is what a draft was drawn from; both are taken after the same
temperature, top-k and top-p.

    known d e f      d stands with probability min(1, p(d) / q(d)), then e, then f: while all before them stand
      p p p p        the first that falls is replaced by a draw from max(p - q, 0); if none falls, a token more from p

So a token has the probability p: min(p, q) as a draft, and what is left of p as a replacement. A draft that was not
drawn, being known beforehand, stands where AR, drawing by the position's own noise, says the same: that has the
probability p, too, and gives the text that AR gives with the same seed. Greedily, no draft is drawn.

Where a model drafts for itself, on noise that follows the known token, its adapters act on the noise alone. If that is
causal, or has adapters, the known token is read as AR reads it, not seeing the noise, so that the next token comes with
the drafts, and these begin behind it.

What is random depends on the row's seed and on the number of the new token alone. A number's noise is used by the draft
that stands or falls there; drafts behind one that fell were never looked at, so theirs is used again.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from edlm_jax.decoding.left_to_right import LeftToRight
from edlm_jax.decoding.program import State
from edlm_jax.decoding.sampling import best_token, gumbel
from edlm_jax.decoding.windows import window

if TYPE_CHECKING:
    from edlm_jax.decoding.modes.mode import DraftMode
    from edlm_jax.decoding.modes.prompt_lookup import PromptLookup

# What a token's key is folded with for its draft, for the test, for noise in its place; AR's own draw takes the key.
_DRAFT, _STAND, _NOISE = 1, 2, 3


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Drafts:
    """Tokens, and the log-probabilities that they were drawn by; None: they were not drawn.

    Of a row that has fewer the others are padding: none stands, and nothing is computed for it.
    """

    tokens_BD: jax.Array
    log_q_BDV: jax.Array | None = None
    count_B: jax.Array | None = None  # how many each row has; None: all

    @property
    def there_BD(self) -> jax.Array:
        """Which of them are no padding."""
        count_B1 = self.tokens_BD.shape[1] if self.count_B is None else self.count_B[:, None]
        return jnp.broadcast_to(np.arange(self.tokens_BD.shape[1])[None] < count_B1, self.tokens_BD.shape)

    def replaced(self, where_B, others: "Drafts") -> "Drafts":
        """Those of the other drafts in the rows where they are wanted."""
        choose = lambda own, new: jnp.where(where_B.reshape(-1, *[1] * (own.ndim - 1)), new, own)  # noqa: E731
        return jax.tree.map(choose, self, others)

    def followed(self, others: "Drafts") -> "Drafts":
        """With the other drafts behind them."""
        return jax.tree.map(lambda own, new: jnp.concatenate([own, new], axis=1), self, others)


class Speculation(LeftToRight):
    """The base of the programs that verify drafts."""

    mode: "DraftMode | PromptLookup"

    @property
    def D(self) -> int:
        """Drafts of a cycle."""
        return self.mode.drafts

    @property
    def width(self) -> int:
        return self.D + 1

    def draw(self, logits_BDV, first_B) -> Drafts:
        """Drafts of the new tokens from number `first` on."""
        draw, temperature = self.settings.draw, self.request.temperature
        keys_BD = self._folded(self.keys(first_B, logits_BDV.shape[1]), _DRAFT)
        log_q_BDV = None if draw.greedy else draw.log_p(logits_BDV, temperature)
        return Drafts(draw.choose(logits_BDV, keys_BD, temperature), log_q_BDV)

    def given(self, tokens_BD) -> Drafts:
        """Drafts that are known beforehand, beside others that are drawn: each has the probability one."""
        if self.settings.draw.greedy:
            return Drafts(tokens_BD)
        return Drafts(tokens_BD, jnp.log(jax.nn.one_hot(tokens_BD, self.weights.spec.vocab_size)))

    def verify(self, rows: State, drafts: Drafts) -> State:
        """One causal forward over the window; what stands is settled, and a token more."""
        last_B, T = rows.start_B - 1, self.D + 1
        window_BT = jnp.concatenate([window(rows.tokens_BX, last_B, 1), drafts.tokens_BD], axis=1)
        wanted_BT = jnp.pad(drafts.there_BD, ((0, 0), (1, 0)), constant_values=True)
        x_BTD, rows = self.forward_window(rows, window_BT, last_B, np.tri(T, dtype=bool), wanted_BT=wanted_BT)
        return self.settle_verified(rows, drafts, self.logits(x_BTD))[0]

    def settle_verified(self, rows: State, drafts: Drafts, logits_BTV) -> tuple[State, jax.Array]:
        """(rows with what stands and a token more, int32[B] drafts that stand), by the logits of the window."""
        same = lambda: self._compare(self.count(rows), drafts, logits_BTV)  # noqa: E731
        if drafts.log_q_BDV is None:
            new_BT, right_B = same()
        else:
            reject = lambda: self._reject(self.count(rows), drafts, logits_BTV)  # noqa: E731
            new_BT, right_B = self.settings.draw.if_drawn(self.request.temperature, reject, same)
        return self.settle(rows, new_BT, right_B + 1, 1, logits_BTV), right_B

    def accept(self, log_p_BD, log_q_BD, u_BD):
        """bool[B, D]: the drafts that stand, if those before them do, by their probabilities and a uniform number."""
        return u_BD < jnp.exp(log_p_BD - log_q_BD)

    def _compare(self, first_B, drafts: Drafts, logits_BTV):
        new_BT = self.choose(logits_BTV, first_B)
        stands_BD = drafts.there_BD & (drafts.tokens_BD == new_BT[:, :-1])
        return new_BT, jnp.cumprod(stands_BD, axis=1).sum(axis=1)

    def _reject(self, first_B, drafts: Drafts, logits_BTV):
        log_p_BTV = self.settings.draw.log_p(logits_BTV, self.request.temperature)
        of_drafts = lambda log_BDV: jnp.take_along_axis(log_BDV, drafts.tokens_BD[..., None], axis=-1)[..., 0]  # noqa: E731
        u_BD = jax.vmap(jax.vmap(jax.random.uniform))(self._folded(self.keys(first_B, self.D), _STAND))
        there_BD = drafts.there_BD
        stands_BD = there_BD & self.accept(of_drafts(log_p_BTV[:, :-1]), of_drafts(drafts.log_q_BDV), u_BD)
        right_B = jnp.cumprod(stands_BD, axis=1).sum(axis=1)
        # Nothing was drafted after the last draft: what is left of p there is p.
        log_q_BDV = jnp.where(there_BD[..., None], drafts.log_q_BDV, -jnp.inf)
        log_q_BTV = jnp.pad(log_q_BDV, ((0, 0), (0, 1), (0, 0)), constant_values=-jnp.inf)
        at = lambda x_BT: jnp.take_along_axis(x_BT, right_B.reshape(-1, *[1] * (x_BT.ndim - 1)), axis=1)  # noqa: E731
        p_B1V, q_B1V = (jnp.exp(at(log_BTV)) for log_BTV in (log_p_BTV, log_q_BTV))
        left_B1V = jnp.maximum(p_B1V - q_B1V, 0)
        # Rounding may leave nothing where p and q are the same, and a draft fall by it.
        left_B1V = jnp.where(left_B1V.any(axis=-1, keepdims=True), left_B1V, p_B1V)
        noise_B1V = gumbel(self.keys(first_B + right_B, 1), left_B1V.shape[-1])
        last_B1 = best_token(jnp.log(left_B1V) + noise_B1V)
        drafted_BT = jnp.pad(drafts.tokens_BD, ((0, 0), (0, 1)))
        return jnp.where(jnp.arange(self.D + 1)[None] < right_B[:, None], drafted_BT, last_B1), right_B

    def _folded(self, keys_BT, use: int):
        return jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, use)))(keys_BT)


class SelfDrafting(Speculation):
    """The base of those whose drafts the model reads on noise that it was trained on."""

    def __init__(self, weights, request, settings):
        conversion = weights.spec.conversion
        self.causal, self.uniform = conversion.layout.noisy == "causal", conversion.noise == "uniform_tokens"
        self.apart = self.causal or weights.gated  # does the known token not see the noise?
        super().__init__(weights, request, settings)

    def block(self, drafts: int) -> int:
        """Columns of noise behind a known token, for drafts of what follows the next one, which AR says."""
        # Where a column predicts the next token and sees no later ones, the last would be neither read nor seen.
        return drafts + (not (self.causal and self.settings.shifted))

    def read(self, noise_MD, drafts: int):
        """[..., drafts, D]: the columns of such blocks that say the drafts."""
        first = int(not self.settings.shifted)
        return noise_MD[..., first : first + drafts, :]

    def noise(self, first_B, T: int):
        """int32[B, T] in the places of the new tokens from number `first` on: masks, or any tokens but the mask."""
        mask_id = self.settings.mask_id
        if not self.uniform:
            return jnp.full((len(first_B), T), mask_id)
        keys_BT, others = self._folded(self.keys(first_B, T), _NOISE), self.weights.spec.vocab_size - 1
        drawn_BT = jax.vmap(jax.vmap(lambda key: jax.random.randint(key, (), 0, others)))(keys_BT)
        return drawn_BT + (drawn_BT >= mask_id)
