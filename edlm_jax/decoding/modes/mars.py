"""MARS: left-to-right acceptance by threshold under causal attention (arXiv 2604.07023), for models tuned on all-mask
blocks that are causal inside.

Shapes as in left_to_right.py. There are no blocks to finish: C masks always follow what is settled, and each step
settles the first of them and those after it while the confidence is at least the threshold. One forward a step:

    cache (causal) | window
    a b c          | M M M M           the prefill: d e stand, the third is not sure
    a b c          | d e | M M M M     their K/V ride along with the next masks: f stands
    a b c d e      | f | M M M M

The tokens are those of greedy AR where only one is taken (threshold 1) and the model reads shifted logits: the first
mask's token is then read at the last settled one, so that the last mask is not needed. The window has 2C or 2C - 1
columns for every row, because a compiled shape cannot follow how many stood; on CPU those that a row does not need take
no products. With a smaller `window` a row has the fewer masks the more tokens its last forward settled, which is faster
where columns are dear; as no mask sees later ones, that changes where a forward stops and nothing before. The paper's
code also accepts by margin or entropy; here the probability decides. Its cache of a batch is filled by blocks, at whose
ends the fast rows wait; here each row fills its own in every step.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from edlm_jax.attention import Causal
from edlm_jax.decoding.left_to_right import LeftToRight
from edlm_jax.decoding.modes.mode import MaskMode, option
from edlm_jax.decoding.program import State
from edlm_jax.decoding.sampling import Sampling
from edlm_jax.decoding.windows import window
from edlm_jax.errors import check_range
from edlm_jax.models import ModelSpec


class _Mars(LeftToRight):
    """Masks that slide; the request's rule is a threshold. `aside` is the first column that is not in the cache."""

    mode: "Mars"

    @property
    def width(self) -> int:
        return self.mode.window or 2 * self.C - self.settings.shifted

    def begin(self) -> State:
        first = self.P - self.settings.shifted
        rows, x_BTD = self.prefill(Causal(), jnp.full((len(self.pad_B), self.C), self.settings.mask_id))
        return self._accept(rows, x_BTD[:, first : first + self.C], self.C)

    def enter(self, rows: State, x_B1D) -> State:
        # The first turn reads the first tokens; shifted, behind the prompt's last column.
        return replace(rows, aside=rows.start_B - self.settings.shifted)

    def turn(self, rows: State) -> State:
        C, cached_B, index_1T = self.C, rows.aside, np.arange(self.width)[None]
        first_B = rows.start_B - cached_B - self.settings.shifted
        tokens_BT, wanted_BT = window(rows.tokens_BX, cached_B, self.width), index_1T < first_B[:, None] + C
        causal_TT = np.tri(self.width, dtype=bool)
        x_BTD, rows = self.forward_window(rows, tokens_BT, cached_B, causal_TT, wanted_BT=wanted_BT)
        own_BC = jnp.minimum(first_B[:, None] + jnp.arange(C)[None], self.width - 1)
        return self._accept(rows, jnp.take_along_axis(x_BTD, own_BC[..., None], axis=1), self.width - first_B)

    def _accept(self, rows: State, x_BCD, most_B) -> State:
        """Keeps the first token, and at most so many in all, while they are sure; what was settled before is cached."""
        proposal, rows = self.propose(rows, self.weights.logits(x_BCD))
        sure_BC = self.request.rule.sure(proposal)
        sure_BC &= jnp.arange(sure_BC.shape[1])[None] < jnp.reshape(most_B, (-1, 1))
        settled_B = 1 + jnp.cumprod(sure_BC[:, 1:], axis=1).sum(axis=1)
        return self.settle(replace(rows, aside=rows.start_B), proposal.tokens_BC, settled_B, forwards=0)


@dataclass(frozen=True)
class Mars(MaskMode):
    """Goes from left to right while confident."""

    name: ClassVar[str] = "mars"
    program: ClassVar[type[LeftToRight]] = _Mars
    causal: ClassVar[bool] = True
    threshold: float = option(
        0.9, float, "accept tokens of at least this confidence, and always the first one", compiled=False
    )
    window: int | None = option(
        None, int, "columns of a forward, the last one's tokens and masks; default: as many as leave a block of masks"
    )

    def check(self, spec: ModelSpec, sampling: Sampling) -> None:
        super().check(spec, sampling)
        C, unshifted = self.block_length, spec.conversion.alignment != "shifted"
        if self.window is not None:
            check_range("window", self.window, C + unshifted, 2 * C - 1 + unshifted)
