"""Linear self-speculation: one model drafts a block with masks and verifies it causally (arXiv 2607.05722).

Its output is the greedy AR output of the same weights, whatever the drafts are; good drafts only make it come sooner.
Shapes as in left_to_right.py. A cycle is two forwards and yields one token to C of them:

    cache (causal) | window
    a b c d e      | f M M M     draft:   the block sees itself both ways; f is known, g h i are proposed
    a b c d e      | f g h i     verify:  causal; says g h x after f, g, h: g and h stand, x replaces i
    a b c d e f g h| x M M M     next
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from edlm_jax.attention import Causal
from edlm_jax.decoding.left_to_right import Grown, LeftToRight, RowSettings
from edlm_jax.decoding.modes.mode import Call, MaskMode, run_rows
from edlm_jax.decoding.windows import window


@dataclass(frozen=True)
class SelfSpeculation(MaskMode):
    """Drafts a block with masks and verifies it causally, in two forwards."""

    name: ClassVar[str] = "self_speculation"
    greedy: ClassVar[bool] = True
    causal: ClassVar[bool] = True

    def start(self, weights, prompts, call: Call):
        return run_rows(weights, prompts, call, LinearSettings, self)


@dataclass(frozen=True)
class LinearSettings(RowSettings):
    """Drafts of one block, verified by a forward of their own."""

    def program(self, weights, request):
        """Draft, then verify."""
        return _Linear(weights, request, self)


class _Linear(LeftToRight):
    def __init__(self, weights, request, settings):
        self.width = settings.block_length
        super().__init__(weights, request, settings)

    def begin(self) -> Grown:
        rows, x_BPD = self.prefill(0, Causal())
        return self.settle(rows, self.best(x_BPD[:, -1:]), 1, forwards=1)

    def turn(self, rows: Grown) -> Grown:
        C, last_B = self.settings.block_length, rows.start_B - 1
        known_B1 = window(rows.tokens_BX, last_B, 1)
        noisy_BC = jnp.pad(known_B1, ((0, 0), (0, C - 1)), constant_values=self.settings.mask_id)
        x_BCD, cache = self.forward(rows.cache, noisy_BC, last_B, np.ones((1, C, C), bool))
        proposed_BC = self.best(x_BCD)
        drafts = proposed_BC[:, :-1] if self.settings.shifted else proposed_BC[:, 1:]
        window_BC = jnp.concatenate([known_B1, drafts], axis=1)
        x_BCD, cache = self.forward(cache, window_BC, last_B, np.tri(C, dtype=bool)[None])
        verified_BC = self.best(x_BCD)  # what AR says after each column of the window
        return self.settle(replace(rows, cache=cache), verified_BC, agreed(drafts, verified_BC) + 1, forwards=2)


def agreed(drafts, verified_BC):
    """int32[B]: how many drafts, from the left, are what AR says there."""
    return jnp.cumprod(drafts == verified_BC[:, :-1], axis=1).sum(axis=1)
