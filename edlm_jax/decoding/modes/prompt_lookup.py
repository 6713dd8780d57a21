"""Prompt lookup: drafts are what followed the last tokens where they stood earlier in the row; no training (A. Saxena,
"Prompt Lookup Decoding", 2023).

Its output is AR's of the same weights, greedy or drawn with the same seed, whatever the drafts are (speculation.py).
Shapes as in left_to_right.py, with N tokens that are looked up and D drafts. A turn is one forward:

    a b c x y z a b |          the last two tokens, a b, stood at the beginning: c x y followed
    cache           | b c x y  verify: causal; says c x z after b, c, x: c and x stand, z replaces y

Where the last tokens stood nowhere before, drafts are padding and one token is settled, as in AR mode; on CPU the
forward then costs what AR's does. The latest of several places is taken.
"""

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import jax.numpy as jnp

from edlm_jax.decoding.left_to_right import LeftToRight
from edlm_jax.decoding.modes.mode import Mode, option
from edlm_jax.decoding.program import State
from edlm_jax.decoding.speculation import Drafts, Speculation
from edlm_jax.decoding.windows import window


class _PromptLookup(Speculation):
    """Looks up, then verifies."""

    mode: "PromptLookup"

    def turn(self, rows: State) -> State:
        tokens_BD, found_B = look_up(rows, self.pad_B, self.mode.lookup, self.D)
        return self.verify(rows, Drafts(tokens_BD, count_B=jnp.where(found_B, self.D, 0)))


@dataclass(frozen=True)
class PromptLookup(Mode):
    """Drafts what followed the last tokens earlier in the row, and verifies it causally."""

    name: ClassVar[str] = "prompt_lookup"
    program: ClassVar[type[LeftToRight]] = _PromptLookup
    lossless: ClassVar[bool] = True
    causal: ClassVar[bool] = True
    drafts: int = option(3, int, "tokens that are drafted", within=(1, inf))
    lookup: int = option(2, int, "last tokens that are looked for", within=(1, inf))


def look_up(rows: State, pad_B, N: int, D: int):
    """(int32[B, D] what followed the latest earlier place of the last N tokens, bool[B] whether there is one)."""
    columns_X = jnp.arange(rows.tokens_BX.shape[1])
    N = min(N, len(columns_X))  # of more tokens than a row has room for none stood earlier
    last_BN = window(rows.tokens_BX, jnp.maximum(rows.start_B - N, 0), N)
    same_BX = jnp.ones(rows.tokens_BX.shape, bool)
    for place in range(N):  # do the N tokens from here on equal the last N?
        same_BX &= jnp.roll(rows.tokens_BX, -place, axis=1) == last_BN[:, place, None]
    inside_BX = (columns_X[None] >= pad_B[:, None]) & (columns_X[None] + N < rows.start_B[:, None])
    from_B = jnp.where(same_BX & inside_BX, columns_X[None] + N, -1).max(axis=1)
    drafts_BD = window(rows.tokens_BX, jnp.maximum(from_B, 0), D)
    known_BD = (from_B[:, None] >= 0) & (from_B[:, None] + jnp.arange(D)[None] < rows.start_B[:, None])
    return jnp.where(known_BD, drafts_BD, 0), from_B >= 0
