"""Prompt lookup: drafts are what followed the last tokens where they stood earlier in the row; no training (A. Saxena,
"Prompt Lookup Decoding", 2023).

Its output is the greedy AR output of the same weights, whatever the drafts are. Shapes as in left_to_right.py, with N
tokens that are looked up and D drafts. A turn is one forward:

    a b c x y z a b |          the last two tokens, a b, stood at the beginning: c x y followed
    cache           | b c x y  verify: causal; says c x z after b, c, x: c and x stand, z replaces y

Where the last tokens stood nowhere before, drafts are padding and one token is settled, as in AR mode. The latest of
several places is taken.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from edlm_jax.attention import Causal
from edlm_jax.decoding.left_to_right import Grown, LeftToRight, RowSettings
from edlm_jax.decoding.modes.mode import Call, Mode, option, run_rows
from edlm_jax.decoding.modes.self_speculation import agreed
from edlm_jax.decoding.windows import window
from edlm_jax.errors import InputError


@dataclass(frozen=True)
class PromptLookup(Mode):
    """Drafts what followed the last tokens earlier in the row, and verifies it causally."""

    name: ClassVar[str] = "prompt_lookup"
    greedy: ClassVar[bool] = True
    causal: ClassVar[bool] = True
    drafts: int = option(3, int, "tokens that are drafted")
    lookup: int = option(2, int, "last tokens that are looked for")

    def check(self, spec, sampling) -> None:
        if self.drafts < 1 or self.lookup < 1:
            raise InputError(f"drafts and lookup must be positive, not {self.drafts} and {self.lookup}")
        super().check(spec, sampling)

    def start(self, weights, prompts, call: Call):
        return run_rows(weights, prompts, call, PromptLookupSettings, self, **vars(self))


@dataclass(frozen=True)
class PromptLookupSettings(RowSettings):
    """The window is the last token and the drafts."""

    drafts: int
    lookup: int

    def program(self, weights, request):
        """Look up, then verify."""
        return _PromptLookup(weights, request, self)


class _PromptLookup(LeftToRight):
    def __init__(self, weights, request, settings):
        self.width = settings.drafts + 1
        super().__init__(weights, request, settings)

    def begin(self) -> Grown:
        rows, x_B1D = self.prefill(0, Causal(), last_column_alone=True)
        return self.settle(rows, self.best(x_B1D), 1, forwards=1)

    def turn(self, rows: Grown) -> Grown:
        last_B, drafts = rows.start_B - 1, self._drafts(rows)
        window_BT = jnp.concatenate([window(rows.tokens_BX, last_B, 1), drafts], axis=1)
        x_BTD, cache = self.forward(rows.cache, window_BT, last_B, np.tri(self.width, dtype=bool)[None])
        verified_BT = self.best(x_BTD)
        return self.settle(replace(rows, cache=cache), verified_BT, agreed(drafts, verified_BT) + 1, forwards=1)

    def _drafts(self, rows: Grown):
        """int32[B, D]: what followed the latest earlier place of the last N tokens; 0 where nothing did."""
        N, D = self.settings.lookup, self.settings.drafts
        columns_X = jnp.arange(rows.tokens_BX.shape[1])
        last_BN = window(rows.tokens_BX, jnp.maximum(rows.start_B - N, 0), N)
        same_BX = jnp.ones(rows.tokens_BX.shape, bool)
        for place in range(N):  # do the N tokens from here on equal the last N?
            same_BX &= jnp.roll(rows.tokens_BX, -place, axis=1) == last_BN[:, place, None]
        inside_BX = (columns_X[None] >= self.pad_B[:, None]) & (columns_X[None] + N < rows.start_B[:, None])
        found_BX = jnp.where(same_BX & inside_BX, columns_X[None] + N, -1)
        from_B = found_BX.max(axis=1)
        drafts = window(rows.tokens_BX, jnp.maximum(from_B, 0), D)
        known = (from_B[:, None] >= 0) & (from_B[:, None] + jnp.arange(D)[None] < rows.start_B[:, None])
        return jnp.where(known, drafts, 0)
