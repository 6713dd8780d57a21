"""What the modes that settle tokens from left to right share: causal rows that grow, and the loops around a cycle.

Shapes as in program.py, with T new columns of a forward. The cache is causal: it holds what AR decoding would hold, so
verified tokens are AR's. There are no commits, for a causal cache takes tokens as they come.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from edlm_jax.attention import Causal
from edlm_jax.decoding.logprobs import Logprobs
from edlm_jax.decoding.program import Program, State
from edlm_jax.decoding.windows import put
from edlm_jax.models.cache import KVCache

_LOOK = 8  # cycles between two looks of someone who watches; a choice: few enough to stop soon, enough to stay compiled


class LeftToRight(Program):
    """The base of the modes' programs, whose turns settle at least one token of each row that is not done."""

    @property
    def beyond(self) -> int:
        """A window begins at the last settled token."""
        return self.width - 1

    def begin(self) -> State:
        """Prefills and settles the first tokens."""
        return self.enter(*self.prefill(Causal(), first=self.P - 1))

    def enter(self, rows: State, x_B1D) -> State:
        """With the first tokens: the next one, as AR gives it."""
        logits_B1V = self.logits(x_B1D)
        return self.settle(rows, self.choose(logits_B1V, self.count(rows)), 1, 1, logits_B1V)

    def fresh(self, tokens_BX, start_B, cache: KVCache) -> State:
        rows, asked = super().fresh(tokens_BX, start_B, cache), self.request.logprobs_B is not None
        return replace(rows, logprobs=Logprobs.empty(*tokens_BX.shape, self.weights.spec.vocab_size) if asked else None)

    def advance(self, rows: State) -> State:
        """A few cycles, or until all rows are done."""
        goes_on = lambda carry: (carry[0] < _LOOK) & ~carry[1].done_B.all()  # noqa: E731
        cycle = lambda carry: (carry[0] + 1, self.turn(carry[1]))  # noqa: E731
        return jax.lax.while_loop(goes_on, cycle, (0, rows))[1]

    def count(self, rows: State):
        """int32[B]: the new tokens of each row."""
        return rows.start_B - self.request.first_B

    def logits(self, x_BTD):
        """float32[B, T, V], of the mask token minus infinity: it is never chosen."""
        logits_BTV, mask_id, allowed_BW = self.weights.logits(x_BTD), self.settings.mask_id, self.request.allowed_BW
        if allowed_BW is not None:
            bits_BW32 = jnp.expand_dims(allowed_BW, -1) >> np.arange(32, dtype=np.int32)[None, None] & 1
            bits_BV = bits_BW32.reshape(len(bits_BW32), -1)[:, : logits_BTV.shape[-1]]
            logits_BTV = jnp.where(bits_BV[:, None] == 1, logits_BTV, -jnp.inf)
        if mask_id is None:
            return logits_BTV
        return jnp.where(jnp.arange(logits_BTV.shape[-1]) == mask_id, -jnp.inf, logits_BTV)

    def keys(self, first_B, T: int):
        """The keys of each row's new tokens from its number `first` on: by seed and number, whatever the batch."""
        return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(self.keys_B, first_B[:, None] + jnp.arange(T)[None])

    def choose(self, logits_BTV, first_B):
        """int32[B, T]: AR's tokens by these logits, the greedy or the drawn ones; `first` numbers the first."""
        keys_BT = self.keys(first_B, logits_BTV.shape[1])
        return self.settings.draw.choose(logits_BTV, keys_BT, self.request.temperature)

    def settle(self, rows: State, new_BT, settled_B, forwards, logits_BTV=None) -> State:
        """Appends the first `settled_B` of new_BT, up to an end or the limit; `forwards` were spent on them.

        The logits are AR's, of lossless modes.
        """
        T, logprobs, ends_BT = new_BT.shape[1], rows.logprobs, self.ends(new_BT, rows.start_B)
        first_end_B = jnp.where(ends_BT.any(axis=1), jnp.argmax(ends_BT, axis=1) + 1, T + 1)
        kept_B = jnp.where(rows.done_B, 0, jnp.minimum(settled_B, first_end_B))
        kept_BT = jnp.arange(T)[None] < kept_B[:, None]
        denoise_B = rows.denoise_B + forwards * ~rows.done_B
        at_BT = jnp.broadcast_to(denoise_B[:, None], new_BT.shape)
        if logprobs is not None:
            logprobs = logprobs.put(new_BT, logits_BTV, rows.start_B, kept_BT & self.request.logprobs_B[:, None])
        return replace(
            rows,
            tokens_BX=put(rows.tokens_BX, new_BT, rows.start_B, kept_BT),
            accepted_at_BX=put(rows.accepted_at_BX, at_BT, rows.start_B, kept_BT),
            start_B=rows.start_B + kept_B,
            denoise_B=denoise_B,
            done_B=rows.done_B | (kept_B == first_end_B),
            logprobs=logprobs,
        )
