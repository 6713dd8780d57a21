"""The honest baseline: one token a forward; same weights, layers, cache and kind of compiled loop as block decoding.

Shapes as in left_to_right.py. All rows that go on add one token a step, so those that began together share a column:
one slice of the cache is written for all of them. A row that is done stays as it is; what is computed beside it is not
read.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from edlm_jax.decoding.left_to_right import Grown, LeftToRight
from edlm_jax.decoding.modes.mode import RowMode
from edlm_jax.decoding.windows import window
from edlm_jax.models.cache import forward_cached


class _Autoregressive(LeftToRight):
    """One token a turn."""

    width = 1  # the last token

    def turn(self, rows: Grown) -> Grown:
        last_B1 = window(rows.tokens_BX, rows.start_B - 1, 1)
        if not self.P:  # they began alone
            x_B1D, cache = self.forward(rows, last_B1, rows.start_B - 1, np.ones((1, 1, 1), bool))
            return self._add(rows, x_B1D, cache)
        last = rows.start_B.max() - 1
        columns_S = jnp.arange(self.S)[None]
        mask_B1S = ((columns_S >= self.pad_B[:, None]) & (columns_S <= last))[:, None]
        rotary_B1 = self.rotary.at((last - self.pad_B)[:, None])
        at = (last_B1, rotary_B1, last, mask_B1S)
        return self._add(rows, *forward_cached(self.weights, rows.cache, *at, wanted_BT=~rows.done_B[:, None]))

    def _add(self, rows: Grown, x_B1D, cache) -> Grown:
        return self.enter(replace(rows, cache=cache), x_B1D)


@dataclass(frozen=True)
class Autoregressive(RowMode):
    """Decodes one token a forward on the same weights, causally."""

    name: ClassVar[str] = "ar"
    program: ClassVar[type[LeftToRight]] = _Autoregressive
    lossless: ClassVar[bool] = True
    guided: ClassVar[bool] = True
    causal: ClassVar[bool] = True
