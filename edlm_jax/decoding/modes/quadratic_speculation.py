"""Quadratic self-speculation: drafts are verified and followed up in one forward a cycle (arXiv 2607.05722).

Its output is AR's of the same weights, as that of linear self-speculation (self_speculation.py), with half the forwards
a cycle and about C + 1 times the columns. Shapes as in left_to_right.py. The known token and its D drafts are C
columns; each is followed by C masks that see the columns up to it, so that wherever verification ends, the next drafts
are there already. In general a group has M columns of noise, A of which are read. C = M = 3, A = 2:

    cache (causal) | window
    a b c          | d e f | M M M   M M M   M M M        d is known, e and f are drafts
                             after d after e after f      each group sees the drafts before it and itself, both ways

    d e f verify:    after d AR says e: e stands; after e it says x: x replaces f, and is known
    after e:         M M M stand where x, and the two tokens after it, will be: the next drafts are the last two

The drafts come first in the window, so that what stands lies in the cache as AR decoding would have left it; the masks'
keys are overwritten. Positions follow the text: a mask has that of the token it stands for. That the first draft is the
token AR has just given, and the first mask of a group goes unread, is our reading of "k drafts, each followed by k
masks, k(k + 1) tokens": the paper's code sends the same window.

With `lookup` a row whose last tokens stood earlier in it drafts what followed there (prompt_lookup.py). Noise may then
give fewer drafts than are verified (`ahead`), where it is right about the first ones alone and columns are dear:
drafts=3,ahead=1 has 4 columns of text and, causally, 4 of noise, of which rows that found nothing need 2 and 2: the
others are not computed on CPU, and padding never stands.
"""

from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from edlm_jax.attention.pattern import Causal, PromptThenBlock
from edlm_jax.decoding.left_to_right import LeftToRight
from edlm_jax.decoding.modes.mode import DraftMode, option
from edlm_jax.decoding.modes.prompt_lookup import look_up
from edlm_jax.decoding.program import State
from edlm_jax.decoding.speculation import Drafts, SelfDrafting
from edlm_jax.decoding.windows import window
from edlm_jax.errors import InputError

# Columns of noise whose logits are worked out beside those of the text, of which one group's are read: a product with
# the head then costs its reading once.
_AT_ONCE = 16


class _Quadratic(SelfDrafting):
    """Verifies and drafts in one; `aside` of its rows holds the next `Drafts`."""

    mode: "QuadraticSpeculation"

    @property
    def noisy(self) -> int:
        """Columns of a group of noise."""
        return self.block(self.mode.ahead)

    @property
    def width(self) -> int:
        return (self.D + 1) * (self.noisy + 1)

    def begin(self) -> State:
        pattern = Causal() if self.causal else PromptThenBlock(self.P, Causal())
        rows, x_BTD = self.prefill(pattern, self.noise(jnp.zeros_like(self.pad_B), self.noisy))
        return self._enter(rows, x_BTD[:, self.P - 1 : self.P], x_BTD[:, self.P :])

    def enter(self, rows: State, x_B1D) -> State:
        last_B, (seen_TT, offset_T, _) = rows.start_B - 1, _window_of(1, self.noisy, self.causal)
        noise_BT = self.noise(self.count(rows), self.noisy)
        tokens_BT = jnp.concatenate([window(rows.tokens_BX, last_B, 1), noise_BT], axis=1)
        x_BTD, rows = self.forward_window(rows, tokens_BT, last_B, seen_TT, offset_T, drafts=self.noisy)
        return self._enter(rows, x_B1D, x_BTD[:, 1:])

    def _enter(self, rows: State, x_B1D, noise_BMD) -> State:
        """With the first token and, by this noise behind it, the first drafts."""
        rows = super().enter(rows, x_B1D)
        return replace(rows, aside=self._drafts(self.logits(self.read(noise_BMD, self.mode.ahead)), rows))

    def turn(self, rows: State) -> State:
        C, M, last_B, drafts = self.D + 1, self.noisy, rows.start_B - 1, rows.aside
        known_B1 = window(rows.tokens_BX, last_B, 1)
        noise_BT = jnp.concatenate([self.noise(self.count(rows) + place, M) for place in range(C)], axis=1)
        tokens_BT = jnp.concatenate([known_B1, drafts.tokens_BD, noise_BT], axis=1)
        seen_TT, offset_T, last_draft_T = _window_of(C, M, self.causal)
        there_BC = jnp.pad(drafts.there_BD, ((0, 0), (1, 0)), constant_values=True)
        how = dict(drafts=C * M, wanted_BT=there_BC[:, last_draft_T])
        x_BTD, rows = self.forward_window(rows, tokens_BT, last_B, seen_TT, offset_T, **how)
        B, _, D = x_BTD.shape
        after_BCAD = self.read(x_BTD[:, C:].reshape(B, C, M, D), self.mode.ahead)
        if (read := C * self.mode.ahead) <= _AT_ONCE:
            after_BTD = after_BCAD.reshape(B, read, D)
            logits_BTV = self.logits(jnp.concatenate([x_BTD[:, :C], after_BTD], axis=1))
            rows, right_B = self.settle_verified(rows, drafts, logits_BTV[:, :C])
            logits_BAV = _at(logits_BTV[:, C:].reshape(*after_BCAD.shape[:3], logits_BTV.shape[-1]), right_B)
        else:
            rows, right_B = self.settle_verified(rows, drafts, self.logits(x_BTD[:, :C]))
            logits_BAV = self.logits(_at(after_BCAD, right_B))
        return replace(rows, aside=self._drafts(logits_BAV, rows))

    def _drafts(self, logits_BAV, rows: State) -> Drafts:
        """The next drafts: those that noise gives, then padding; where the last tokens stood before, what followed."""
        drafts, more = self.draw(logits_BAV, self.count(rows)), self.D - self.mode.ahead
        count_B = jnp.full(len(self.pad_B), self.mode.ahead)
        if more:
            drafts = drafts.followed(self.given(jnp.zeros((len(self.pad_B), more), jnp.int32)))
        if self.mode.lookup:
            tokens_BD, found_B = look_up(rows, self.pad_B, self.mode.lookup, self.D)
            drafts, count_B = drafts.replaced(found_B, self.given(tokens_BD)), jnp.where(found_B, self.D, count_B)
        return replace(drafts, count_B=count_B)


@dataclass(frozen=True)
class QuadraticSpeculation(DraftMode):
    """Verifies drafts and follows them up in one wide forward."""

    name: ClassVar[str] = "quadratic_speculation"
    program: ClassVar[type[LeftToRight]] = _Quadratic
    ahead: int | None = option(None, int, "of the drafts, those that noise gives; default: all", within=(0, inf))
    lookup: int = option(0, int, "last tokens that are looked for; 0: none", within=(0, inf))

    def completed(self, spec) -> "QuadraticSpeculation":
        mode = super().completed(spec)
        if mode.ahead is None:
            return replace(mode, ahead=mode.drafts)
        return replace(mode, block_length=mode.ahead + 1)

    def check(self, spec, sampling) -> None:
        super().check(spec, sampling)
        if not 0 <= self.ahead <= self.drafts:
            raise InputError(f"ahead must be 0 to drafts={self.drafts}, not {self.ahead}")


def _at(x_BCAX, place_B):
    """x_BAX of each row's own place."""
    return jnp.take_along_axis(x_BCAX, place_B[:, None, None, None], axis=1)[:, 0]


def _window_of(C: int, M: int, causal: bool):
    """Of C drafts and their groups of M columns: who sees whom, positions from the first, the last draft each sees."""
    group_T = np.concatenate([np.full(C, -1), np.repeat(np.arange(C), M)])  # -1: a draft
    index_T = np.concatenate([np.arange(C), np.tile(np.arange(M), C)])
    draft_T = group_T < 0
    last_draft_T = np.where(draft_T, index_T, group_T)  # the last draft that a column sees
    seen_TT = draft_T[None] & (index_T[None] <= last_draft_T[:, None])
    inside_TT = ~draft_T[None] & (group_T[None] == group_T[:, None])
    seen_TT |= inside_TT & (index_T[None] <= index_T[:, None]) if causal else inside_TT
    return seen_TT, np.where(draft_T, index_T, group_T + 1 + index_T), last_draft_T
