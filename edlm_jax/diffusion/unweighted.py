"""Cross-entropy of masked tokens, each of which counts the same: no 1/t (FLARE, arXiv 2606.01774; MARS; DMax)."""

from dataclasses import dataclass
from typing import ClassVar

from edlm_jax.diffusion.terms import Term


@dataclass(frozen=True)
class CrossEntropy(Term):
    """The mean of ce over masked tokens."""

    name: ClassVar[str] = "cross_entropy"
