"""AR decoding in pieces, for someone who watches and for stop strings: the tokens of autoregressive.py, row by row.

Shapes as in left_to_right.py.
"""

from dataclasses import dataclass, replace

import jax
import numpy as np

from edlm_jax.attention import Causal
from edlm_jax.decoding.left_to_right import LeftToRight, Rows, RowSettings
from edlm_jax.decoding.windows import window


@dataclass(frozen=True)
class StepwiseSettings(RowSettings):
    """One token a cycle."""

    def program(self, weights, request):
        """The window is the last token."""
        return _Stepwise(weights, request, self)


class _Stepwise(LeftToRight):
    width = 1

    def __init__(self, weights, request, settings):
        super().__init__(weights, request, settings)
        self.keys_B = jax.vmap(jax.random.key)(request.seeds_B)

    def begin(self) -> Rows:
        rows, x_BPD = self.prefill(0, Causal())
        return self._choose(rows, x_BPD[:, -1:])

    def cycle(self, rows: Rows) -> Rows:
        last_B = rows.start_B - 1
        last_B1 = window(rows.tokens_BX, last_B, 1)
        x_B1D, cache = self.forward(rows.cache, last_B1, last_B, np.ones((1, 1, 1), bool))
        return self._choose(replace(rows, cache=cache), x_B1D)

    def _choose(self, rows: Rows, x_B1D) -> Rows:
        c, logits_B1V = self.settings, self.weights.logits(x_B1D)
        draw = (self.keys_B, rows.count_B, self.request.temperature)
        return self.settle(rows, c.sampling.propose(logits_B1V, *draw, banned_id=c.mask_id).tokens_BC, 1, forwards=1)
