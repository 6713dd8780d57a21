"""Quadratic self-speculation: drafts are verified and followed up in one forward a cycle (arXiv 2607.05722).

Its output is the greedy AR output of the same weights, as that of linear self-speculation (self_speculation.py), with
half the forwards a cycle and C + 1 times the columns. Shapes as in left_to_right.py. Each of C drafts is followed by C
masks that see the drafts up to it, so that wherever verification ends, the next drafts are there already. C = 3:

    cache (causal) | window
    a b c          | d e f | M M M   M M M   M M M        d is known, e and f are drafts
                             after d after e after f      each group sees the drafts before it and itself, both ways

    d e f verify:    after d AR says e: e stands; after e it says x: x replaces f, and is known
    after e:         M M M stand where x, and the two tokens after it, will be: the next drafts are the last two

The drafts come first in the window, so that what stands lies in the cache as AR decoding would have left it; the masks'
keys are overwritten. Positions follow the text: a mask has that of the token it stands for. That the first draft is the
token AR has just given, and the first mask of a group goes unread, is our reading of "k drafts, each followed by k
masks, k(k + 1) tokens": the paper's code sends the same window.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from edlm_jax.attention import Causal
from edlm_jax.decoding.blocks import PromptThenBlock
from edlm_jax.decoding.left_to_right import Grown, LeftToRight, RowSettings
from edlm_jax.decoding.modes.mode import Call, MaskMode, run_rows
from edlm_jax.decoding.modes.self_speculation import agreed
from edlm_jax.decoding.windows import window


@dataclass(frozen=True)
class QuadraticSpeculation(MaskMode):
    """Verifies drafts and follows them up in one wide forward."""

    name: ClassVar[str] = "quadratic_speculation"
    greedy: ClassVar[bool] = True
    causal: ClassVar[bool] = True

    def start(self, weights, prompts, call: Call):
        return run_rows(weights, prompts, call, QuadraticSettings, self)


@dataclass(frozen=True)
class QuadraticSettings(RowSettings):
    """`aside` of its rows holds the next drafts, int32[B, C - 1]."""

    def program(self, weights, request):
        """Verify and draft in one."""
        return _Quadratic(weights, request, self)


class _Quadratic(LeftToRight):
    def __init__(self, weights, request, settings):
        self.width = settings.block_length * (settings.block_length + 1)
        super().__init__(weights, request, settings)

    def begin(self) -> Grown:
        C = self.settings.block_length
        rows, x_BTD = self.prefill(C, PromptThenBlock(self.P, Causal()))
        rows = replace(rows, aside=self._drafts(x_BTD[:, self.P :]))
        return self.settle(rows, self.best(x_BTD[:, self.P - 1 : self.P]), 1, forwards=1)

    def turn(self, rows: Grown) -> Grown:
        C, last_B = self.settings.block_length, rows.start_B - 1
        drafts = rows.aside
        known_B1 = window(rows.tokens_BX, last_B, 1)
        masks = ((0, 0), (0, C * C))
        tokens_BT = jnp.pad(jnp.concatenate([known_B1, drafts], axis=1), masks, constant_values=self.settings.mask_id)
        seen_TT, offset_T = _window_of(C)
        x_BTD, cache = self.forward(rows.cache, tokens_BT, last_B, seen_TT[None], offset_T)
        verified_BC = self.best(x_BTD[:, :C])  # what AR says after each draft
        right_B = agreed(drafts, verified_BC)
        after_BCCD = x_BTD[:, C:].reshape(-1, C, C, x_BTD.shape[-1])
        after_BCD = jnp.take_along_axis(after_BCCD, right_B[:, None, None, None], axis=1)[:, 0]
        rows = replace(rows, cache=cache, aside=self._drafts(after_BCD))
        return self.settle(rows, verified_BC, right_B + 1, forwards=1)

    def _drafts(self, masks_BCD):
        """What masks right after a known token say of the tokens after the next one, which AR has said."""
        return self.best(masks_BCD[:, :-1] if self.settings.shifted else masks_BCD[:, 1:])


def _window_of(C: int):
    """(seen_TT, offset_T) of C drafts and their groups of C masks: who sees whom, and positions from the first."""
    group_T = np.repeat(np.arange(-1, C), C)  # -1: a draft
    index_T = np.tile(np.arange(C), C + 1)
    draft_T = group_T < 0
    last_draft_T = np.where(draft_T, index_T, group_T)  # the last draft that a column sees
    seen_TT = draft_T[None] & (index_T[None] <= last_draft_T[:, None])
    seen_TT |= ~draft_T[None] & (group_T[None] == group_T[:, None])
    return seen_TT, np.where(draft_T, index_T, group_T + 1 + index_T)
