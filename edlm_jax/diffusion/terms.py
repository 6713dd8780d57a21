"""The loss of a step is a sum of terms, each with one denominator over the GLOBAL batch:

    sum over terms of  weight * (sum over the term's columns / their number)

Each quotient is one mean over all loss tokens and never a mean of means: long and short documents count by their tokens
(arXiv 2607.05722 measured +2.1 for it). Denominators follow from batch and noise alone, so they are known before the
forward pass: micro-batches scale by them and simply add.

A new term is a class and a line in registry.py: the config then has NAME_weight, a run NAME_loss and eval_NAME_loss.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from edlm_jax.diffusion.streams import Layout, Streams
from edlm_jax.errors import InputError

NOISE_BINS = 4  # of the per-noise-level loss: t in (0, 1/4], (1/4, 1/2], ...
Sums = dict[str, jax.Array]  # "loss", and what else a term counts; micro-batches and batches add leaf by leaf


@dataclass(frozen=True)
class Term:
    """The base: a mean over columns of a noisy stream. `name` is its own in metrics and configs."""

    weight: float = 1.0

    name: ClassVar[str]
    default: ClassVar[float] = 0.0  # the weight in a config that says nothing
    needs_noise: ClassVar[bool] = True

    def check(self, layout: Layout) -> None:
        """Raises InputError for a layout under which the term would leak or lie."""

    def reads_clean(self, layout: Layout) -> bool:
        """Is anything read from the clean stream? Shifted, the first token of each block is."""
        return layout.shifted

    def columns(self, layout: Layout, length: int) -> int:
        """Columns of a row that the head runs on."""
        return layout.noisy_columns(length)

    def wanted(self, streams: Streams) -> jax.Array:
        """The columns of its stream that are summed over: masked tokens that have a logit."""
        return streams.predicted(streams.corruption.masked_BM)

    def count(self, streams: Streams) -> jax.Array:
        """The denominator: their number."""
        return self.wanted(streams).sum(dtype=jnp.float32)

    def reads(self, streams: Streams, x_BTD) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(hidden states, the tokens to be predicted from them, which of these are wanted) of its stream's columns."""
        return streams.aligned(x_BTD), streams.targets_BM, self.wanted(streams)

    def sums(self, streams: Streams, model, x_BTD) -> Sums:
        """{"loss": the sum over the batch, ...} from the last hidden states; by itself of cross-entropy."""
        return {"loss": model.cross_entropy(*self.reads(streams, x_BTD)).sum()}  # 0 where it is not wanted

    def losses(self, sums: Sums, weights: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """What is reported of training and of held-out data; `weights` are all terms' counts, and "tokens"."""
        return {f"{self.name}_loss": mean(sums["loss"], weights[self.name])}

    def metrics(self, sums: Sums, weights: dict[str, jax.Array], streams: Streams) -> dict[str, jax.Array]:
        """What a step reports."""
        return self.losses(sums, weights) | {name: value for name, value in sums.items() if name != "loss"}


@dataclass(frozen=True)
class NextToken(Term):
    """The AR loss, of a clean stream whose columns do not see their successors."""

    name = "ar"
    needs_noise = False

    def check(self, layout: Layout) -> None:
        if not layout.next_tokens:
            raise InputError(
                "config.objective.ar_weight > 0 needs a token-causal clean stream (semi_block, causal_block): under "
                "other patterns a token sees its own successor, and next-token labels would leak"
            )

    def reads_clean(self, layout: Layout) -> bool:
        return True

    def columns(self, layout: Layout, length: int) -> int:
        return length

    def wanted(self, streams: Streams) -> jax.Array:
        return streams.next_tokens[1]

    def reads(self, streams: Streams, x_BTD) -> tuple[jax.Array, jax.Array, jax.Array]:
        return streams.clean(x_BTD), *streams.next_tokens


@dataclass(frozen=True)
class MaskedTokens(Term):
    """The diffusion loss (arXiv 2512.14067, section 3.1): sum of ce / t over masked tokens, over their number.

    This is the reduction of the released code; its expectation is about twice the NELBO per token, because about half
    of the tokens are masked.
    """

    name = "diffusion"
    default = 1.0

    def sums(self, streams: Streams, model, x_BTD) -> Sums:
        level_BM, masked_BM = streams.corruption.noise_level_BM, self.wanted(streams)
        ce_BM = model.cross_entropy(*self.reads(streams, x_BTD))
        bin_BM = jnp.minimum(jnp.ceil(level_BM * NOISE_BINS).astype(int) - 1, NOISE_BINS - 1)
        # A metric: no gradient flows through the bins.
        bins = [weighted_sum(ce_BM, masked_BM & (bin_BM == index)) for index in range(NOISE_BINS)]
        bin_ce, bin_count = (jnp.stack(column) for column in zip(*bins, strict=True))
        return {"loss": _over_level(ce_BM, masked_BM, level_BM)[0], "bin_ce": bin_ce, "bin_count": bin_count}

    def losses(self, sums: Sums, weights: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return dict(
            diffusion_loss=mean(sums["loss"], weights["tokens"]),  # nats per token, the scale of held-out losses
            diffusion_objective=mean(sums["loss"], weights[self.name]),  # as it is optimised: about twice that
        )

    def metrics(self, sums: Sums, weights: dict[str, jax.Array], streams: Streams) -> dict[str, jax.Array]:
        corruptible = streams.corruption.copied(streams.batch["loss_mask"] > 0).sum(dtype=jnp.float32)
        return super().metrics(sums, weights, streams) | dict(masked_fraction=mean(weights[self.name], corruptible))


@dataclass(frozen=True)
class CrossEntropy(Term):
    """The mean of ce over masked tokens, no 1/t: each counts the same (FLARE, arXiv 2606.01774; MARS; DMax)."""

    name = "cross_entropy"


@dataclass(frozen=True)
class Certainty(Term):
    """Sum of entropies at masked tokens predicted right, over all masked (CAP of LLaDA2.0, 2512.15745; dParallel)."""

    name = "certainty"

    def sums(self, streams: Streams, model, x_BTD) -> Sums:
        entropy_BM = model.certainty(streams.aligned(x_BTD), streams.targets_BM, self.wanted(streams))
        return {"loss": entropy_BM.sum()}  # 0 where it is not wanted


def diffusion_loss(
    logits_BLV: Float[Array, "B L V"],
    targets_BL: Int[Array, "B L"],
    masked_BL: Bool[Array, "B L"],
    noise_level_BL: Float[Array, "B L"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(sum of ce / t over masked positions, their number): add both over the global batch, then divide once."""
    ce_BL = optax.softmax_cross_entropy_with_integer_labels(logits_BLV.astype(jnp.float32), targets_BL)
    return _over_level(ce_BL, masked_BL, noise_level_BL)


def weighted_sum(values_BL, mask_BL):
    """(sum of values where the mask holds, how many): masked-out values may be anything finite."""
    return jnp.where(mask_BL, values_BL, 0.0).sum(), mask_BL.sum(dtype=jnp.float32)


def mean(total, count):
    """Of nothing it is 0."""
    return total / jnp.maximum(count, 1)


def _over_level(ce_BL, masked_BL, noise_level_BL):
    return weighted_sum(ce_BL / noise_level_BL, masked_BL)
