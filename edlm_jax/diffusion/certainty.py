"""Certainty: entropy is taken off predictions that are right (CAP of LLaDA2.0, arXiv 2512.15745; dParallel)."""

from dataclasses import dataclass
from typing import ClassVar

from edlm_jax.diffusion.streams import Streams
from edlm_jax.diffusion.terms import Sums, Term


@dataclass(frozen=True)
class Certainty(Term):
    """The sum of entropies at masked tokens that are predicted right, over the number of all masked tokens."""

    name: ClassVar[str] = "certainty"

    def sums(self, streams: Streams, model, x_BTD) -> Sums:
        entropy_BM = model.certainty(streams.aligned(x_BTD), streams.targets_BM, self.wanted(streams))
        return {"loss": entropy_BM.sum()}  # 0 where it is not wanted
