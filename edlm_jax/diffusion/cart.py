"""Context-adaptive noise rescheduling: a masked token counts by how near its context is (CART of Dream, 2508.15487)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from edlm_jax.diffusion.streams import Layout, Streams
from edlm_jax.diffusion.terms import Sums, Term
from edlm_jax.errors import InputError

_P = 0.1  # of the geometric distribution, as in the released settings


@dataclass(frozen=True)
class ContextAdaptive(Term):
    """The sum of w ce over masked tokens, over their number, with no 1/t.

    w = 1/2 sum p (1 - p)^(d - 1) over the tokens of the document that are there, d > 0 columns away to either side.
    """

    name = "context_adaptive"

    def check(self, layout: Layout) -> None:
        if layout.two_streams or layout.noisy != "bidirectional":
            raise InputError(
                "config.objective.context_adaptive_weight > 0 needs pattern='bidirectional': it weighs a token by what "
                "stands to both sides of it"
            )

    def sums(self, streams: Streams, model, x_BTD) -> Sums:
        segments_BL = streams.batch["segment_ids"]
        there_BL = ~streams.corruption.masked_BM & (segments_BL > 0)
        nearness_BL = _before(there_BL, segments_BL) + _before(there_BL[:, ::-1], segments_BL[:, ::-1])[:, ::-1]
        ce_BL = model.cross_entropy(*self.reads(streams, x_BTD))  # 0 where it is not wanted
        return {"loss": (nearness_BL / 2 * ce_BL).sum()}


def _before(there_BL, segments_BL):
    """float32[B, L]: sum of p (1 - p)^(d - 1) over what is there d columns before, in the same document."""
    same_BL = jnp.pad(segments_BL[:, 1:] == segments_BL[:, :-1], ((0, 0), (1, 0)))
    new_BL = _P * jnp.pad(there_BL[:, :-1], ((0, 0), (1, 0))) * same_BL
    two_steps = lambda a, b: (a[0] * b[0], a[1] * b[0] + b[1])  # noqa: E731
    return jax.lax.associative_scan(two_steps, ((1 - _P) * same_BL, new_BL), axis=1)[1]
