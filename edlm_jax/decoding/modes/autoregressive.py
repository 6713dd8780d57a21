"""The honest baseline: one token a forward; same weights, layers, cache and kind of compiled loop as block decoding.

Shapes as in left_to_right.py. All rows that go on add one token a step, so those that began together share a column:
one slice of the cache is written for all of them. A row that is done stays as it is; what is computed beside it is not
read.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from edlm_jax.decoding.left_to_right import LeftToRight
from edlm_jax.decoding.modes.mode import Mode
from edlm_jax.decoding.program import State
from edlm_jax.decoding.windows import window
from edlm_jax.models.cache import forward_cached


class _Autoregressive(LeftToRight):
    """One token a turn."""

    width = 1  # the last token

    def turn(self, rows: State) -> State:
        last_B1 = window(rows.tokens_BX, rows.start_B - 1, 1)
        if not self.P:  # they began alone
            x_B1D, rows = self.forward_window(rows, last_B1, rows.start_B - 1, np.ones((1, 1), bool))
            return self.enter(rows, x_B1D)
        last = rows.start_B.max() - 1
        columns_11S = jnp.arange(self.S)[None, None]
        new = last_B1, self.at(last[None, None]), last, self.inside(columns_11S, last + 1)
        x_B1D, cache = forward_cached(self.weights, rows.cache, *new, wanted_BT=~rows.done_B[:, None])
        return self.enter(replace(rows, cache=cache), x_B1D)


@dataclass(frozen=True)
class Autoregressive(Mode):
    """Decodes one token a forward on the same weights, causally."""

    name: ClassVar[str] = "ar"
    program: ClassVar[type[LeftToRight]] = _Autoregressive
    lossless: ClassVar[bool] = True
    guided: ClassVar[bool] = True
    causal: ClassVar[bool] = True
