"""Linear self-speculation: one model drafts a block behind what is known and verifies it causally (arXiv 2607.05722).

Its output is AR's of the same weights, greedy or drawn, whatever the drafts are (speculation.py); good drafts only make
it come sooner. Shapes as in left_to_right.py. A cycle is two forwards and yields one token to D + 1 of them, D = 3:

    cache (causal) | window
    a b c d e      | f M M M     draft:   the block sees itself both ways; f is known, g h i are proposed
    a b c d e      | f g h i     verify:  causal; says g h x after f, g, h: g and h stand, x replaces i
    a b c d e f g h| x M M M     next

Where the noise is causal, or adapters act on it alone, f does not see it and says g as AR does: the drafts are h i j
then, the window of verification begins at g, and a cycle yields two tokens to D + 2 (Uno, arXiv 2609.04010).

With `lookup` a row whose last tokens stood earlier in it drafts what followed there (prompt_lookup.py) and needs no
forward for it; where that holds for all rows of a batch, none is done.
"""

from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from edlm_jax.decoding.left_to_right import LeftToRight
from edlm_jax.decoding.modes.mode import DraftMode, option
from edlm_jax.decoding.modes.prompt_lookup import look_up
from edlm_jax.decoding.program import State
from edlm_jax.decoding.speculation import Drafts, SelfDrafting
from edlm_jax.decoding.windows import window


class _Linear(SelfDrafting):
    """Drafts of one block, verified by a forward of their own."""

    mode: "SelfSpeculation"

    @property
    def noisy(self) -> int:
        """Columns of noise."""
        # Behind a token that does not see it noise has the length of its training: a block.
        return self.block(self.D) if self.apart else self.D

    @property
    def width(self) -> int:
        return self.noisy + 1

    def turn(self, rows: State) -> State:
        N = self.mode.lookup
        if not N:
            return self.verify(*self._draft(rows, ~rows.done_B))
        tokens_BD, found_B = look_up(rows, self.pad_B, N, self.D)
        needed_B = ~(found_B | rows.done_B)

        def draft(carry):
            rows, drafts = self._draft(carry[1], needed_B)
            return jnp.zeros((), bool), rows, drafts.replaced(found_B, carry[2])

        # A loop that runs at most once, instead of a branch: the cache is updated in place.
        carry = (needed_B.any(), rows, self.given(tokens_BD))
        return self.verify(*jax.lax.while_loop(lambda carry: carry[0], draft, carry)[1:])

    def _draft(self, rows: State, needed_B) -> tuple[State, Drafts]:
        """(rows that paid for the forward, with the next token where AR has said it; drafts of what follows)."""
        last_B, first_B = rows.start_B - 1, self.count(rows)
        window_BT = jnp.concatenate([window(rows.tokens_BX, last_B, 1), self.noise(first_B, self.noisy)], axis=1)
        x_BTD, rows = self.forward_window(rows, window_BT, last_B, self._seen(), drafts=self.noisy)
        if self.apart:
            logits_BTV = self.logits(jnp.concatenate([x_BTD[:, :1], self.read(x_BTD[:, 1:], self.D)], axis=1))
            next_B1 = self.choose(logits_BTV[:, :1], first_B)
            rows = self.settle(rows, next_B1, needed_B.astype(jnp.int32), needed_B, logits_BTV[:, :1])
            return rows, self.draw(logits_BTV[:, 1:], first_B + 1)
        rows = replace(rows, denoise_B=rows.denoise_B + needed_B)
        return rows, self.draw(self.logits(x_BTD[:, :-1] if self.settings.shifted else x_BTD[:, 1:]), first_B)

    def _seen(self):
        """bool[T, T]: who sees whom in a window of the known token and noise."""
        seen_TT = np.tri(self.noisy + 1, dtype=bool)
        if not self.causal:
            seen_TT[int(self.apart) :, 1:] = True
        return seen_TT


@dataclass(frozen=True)
class SelfSpeculation(DraftMode):
    """Drafts a block behind what is known and verifies it causally, in two forwards."""

    name: ClassVar[str] = "self_speculation"
    program: ClassVar[type[LeftToRight]] = _Linear
    lookup: int = option(0, int, "last tokens that are looked for; 0: none", within=(0, inf))
