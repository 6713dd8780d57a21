"""A second, frozen model as teacher: it saw the same noise in its own, smaller blocks (BARD, arXiv 2604.16514)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from edlm_jax.diffusion.streams import Streams
from edlm_jax.diffusion.terms import Sums, Term

BEST = 16  # tokens of a column that the teacher speaks of; they share 1 among them


@dataclass(frozen=True)
class Taught(Term):
    """The mean of KL(p || q) over masked tokens: p is the teacher's softmax over its best tokens, q that over all.

    What fills a last block is left out: the teacher's own ends earlier, and beyond it nothing was ever learned.
    """

    name = "teacher"

    def wanted(self, streams: Streams) -> jax.Array:
        document_BL = streams.batch["loss_mask"] == 1
        return super().wanted(streams) & streams.corruption.copied(document_BL)

    def sums(self, streams: Streams, model, x_BTD) -> Sums:
        assert streams.corruption.taught is not None  # whoever makes a step asks the teacher first
        logits_BMK, tokens_BMK = streams.corruption.taught
        log_p_BMK, wanted_BM = jax.nn.log_softmax(logits_BMK), self.wanted(streams)
        p_BMK = jnp.exp(log_p_BMK)
        ce_BM = model.cross_entropy(streams.aligned(x_BTD), tokens_BMK, wanted_BM, p_BMK)
        return {"loss": (ce_BM + jnp.where(wanted_BM, (p_BMK * log_p_BMK).sum(-1), 0)).sum()}
