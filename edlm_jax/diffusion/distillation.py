"""Noisy columns learn what the clean ones, rows of an AR model, say of the same token of the same forward pass.

A draft of q stands with probability sum min(p, q) = 1 - TV under exact verification: total variation is what Uno
(arXiv 2609.04010) trains; KL is what OPDLM (arXiv 2606.06712) does, in large vocabularies over the teacher's 16 best.
"""

from dataclasses import dataclass

import jax

from edlm_jax.diffusion.streams import Layout, Streams, shift_right
from edlm_jax.diffusion.terms import Sums, Term
from edlm_jax.errors import InputError


@dataclass(frozen=True)
class Drafts(Term):
    """The mean of ce of the text's tokens over columns that are noise and have a clean one for the same token.

    Where the text is the model's own greedy one, these are the drafts that stand: no clean logits are needed to know.
    """

    name = "drafts"

    def check(self, layout: Layout) -> None:
        if not (layout.two_streams and layout.next_tokens):
            raise InputError(
                f"config.objective.{self.name}_weight > 0 needs a token-causal clean stream beside the noisy one "
                "(semi_block, causal_block): under other patterns its rows are not an AR model's"
            )

    def reads_clean(self, layout: Layout) -> bool:
        return False

    def wanted(self, streams: Streams) -> jax.Array:
        noise_BM = streams.corruption.masked_BM
        if streams.layout.shifted:  # of the token after a column's own
            return noise_BM & streams.corruption.copied(streams.next_tokens[1])
        return noise_BM & streams.has_predecessor

    def reads(self, streams: Streams, x_BTD) -> tuple[jax.Array, jax.Array, jax.Array]:
        after = streams.corruption.copied(streams.next_tokens[0])
        targets_BM = after if streams.layout.shifted else streams.targets_BM
        return x_BTD[:, : targets_BM.shape[1]], targets_BM, self.wanted(streams)


@dataclass(frozen=True)
class TotalVariation(Drafts):
    """The mean of half |p - q| over the same columns."""

    name = "total_variation"
    best = 0  # tokens of the teacher that KL sums over; 0: all
    which = 0  # of (total variation, KL)

    def reads_clean(self, layout: Layout) -> bool:
        return True

    def sums(self, streams: Streams, model, x_BTD) -> Sums:
        if self.best not in streams.found:  # one pass over the head for all that is asked of it
            clean_BLD = jax.lax.stop_gradient(streams.clean(x_BTD))
            teacher_BMD = streams.corruption.copied(clean_BLD if streams.layout.shifted else shift_right(clean_BLD))
            own_BMD = x_BTD[:, : teacher_BMD.shape[1]]
            streams.found[self.best] = model.divergence(own_BMD, teacher_BMD, self.wanted(streams), best=self.best)
        return {"loss": streams.found[self.best][self.which].sum()}


@dataclass(frozen=True)
class KullbackLeibler(TotalVariation):
    """The mean of KL(p || q)."""

    name = "kl"
    which = 1


@dataclass(frozen=True)
class TopKullbackLeibler(KullbackLeibler):
    """The same over the teacher's 16 best tokens, not renormalised."""

    name = "kl_top16"
    best = 16
