"""From a batch to sums: the stream layout, the corruption and the losses of every objective, with nothing divided yet.

The loss of a step is one number over the GLOBAL batch,

    ar_weight * (sum of ce / tokens with a successor) + diffusion_weight * (sum of ce / t / masked tokens),

each quotient one mean over all loss tokens and never a mean of means: long and short documents count by their tokens
(arXiv 2607.05722 measured +2.1 for it). The second quotient is the reduction of the released code, divided by what
was masked; its expectation is about twice the NELBO per token, because about half of the tokens are masked. Both
denominators follow from batch and noise alone, so they are known before the forward pass: micro-batches scale by them
and simply add. What is reported beside the loss is the same sum over a third denominator, the documents' tokens: nats
per token, the scale of held-out losses.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from edlm_jax.attention import Bidirectional, BlockCausal, Causal, CleanContext, Pattern
from edlm_jax.data.packing import without_filler
from edlm_jax.diffusion import (
    choose_copies,
    corrupt,
    next_token_targets,
    shift_right,
    weighted_sum,
)

NOISE_BINS = 4  # of the per-noise-level loss: t in (0, 1/4], (1/4, 1/2], ...
Batch = dict[str, jax.Array]


class Corruption(NamedTuple):
    """The noisy stream: what `corrupt` returns, and the column that each of its M columns is a copy of."""

    noisy_BM: jax.Array
    masked_BM: jax.Array
    noise_level_BM: jax.Array
    copies_BM: jax.Array | None = None  # None: M = L, column j of column j

    def copied(self, x_BL: jax.Array) -> jax.Array:
        """What the clean columns hold, for the noisy ones."""
        return x_BL if self.copies_BM is None else jnp.take_along_axis(x_BL, self.copies_BM, axis=1)


class Weights(NamedTuple):
    """Loss tokens of a batch: the two denominators, and of the diffusion loss in nats per token a third."""

    ar: jax.Array
    diffusion: jax.Array  # masked tokens
    tokens: jax.Array  # that might have been masked, without what fills last blocks


class Sums(NamedTuple):
    """What a batch adds up to. Micro-batches, and batches of a held-out set, add leaf by leaf."""

    ar: jax.Array  # sum of ce
    diffusion: jax.Array  # sum of ce / t
    bin_ce: jax.Array  # [NOISE_BINS] sum of ce of masked tokens by noise level
    bin_count: jax.Array  # [NOISE_BINS]


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is learned from a batch; hashable, so that it may be static under jit."""

    pattern: str
    alignment: str
    block_length: int
    half_life: float | None
    mask_id: int
    ar_weight: float
    diffusion_weight: float
    noisy_length: int = 0  # 0: one noisy copy of every block

    @classmethod
    def from_config(cls, c: ConfigDict, mask_id: int) -> "Objective":
        """The objective of c.objective; `mask_id` is not looked at by the AR objective."""
        o = c.objective
        if o.pattern == "causal":
            return cls("causal", "shifted", 1, None, mask_id, ar_weight=1.0, diffusion_weight=0.0)
        losses = (o.ar_weight, o.diffusion_weight)
        return cls(o.pattern, o.alignment, o.block_length, o.half_life, mask_id, *losses, o.noisy_length)

    @property
    def two_streams(self) -> bool:
        """Does the row become [noisy | clean]?"""
        return self.pattern in ("clean_context", "semi_block")

    def attention(self, length: int) -> Pattern:
        """The attention pattern of a training row of `length` tokens."""
        if self.pattern == "causal":
            return Causal()
        if self.pattern == "bidirectional":
            return Bidirectional()
        if self.pattern == "block_causal":
            return BlockCausal(self.block_length)
        clean = "token_causal" if self.pattern == "semi_block" else "block_causal"
        return CleanContext(length, self.block_length, clean, self.noisy_length or None)

    def corrupt(self, keys_B: jax.Array, batch: Batch) -> Corruption:
        """Noise for each row from its own key; nothing is masked for AR, nor where loss_mask is 0."""
        tokens_BL = batch["tokens"]
        if self.diffusion_weight == 0:
            return Corruption(tokens_BL, jnp.zeros(tokens_BL.shape, bool), jnp.ones(tokens_BL.shape))
        corruptible_BL = (batch["loss_mask"] > 0) & (batch["segment_ids"] > 0)
        sizes = dict(block_length=self.block_length, mask_id=self.mask_id, half_life=self.half_life)
        if not self.noisy_length:
            return Corruption(*corrupt(keys_B, tokens_BL, corruptible_BL, **sizes))
        choice_keys_B, keys_B = jax.vmap(jax.random.split, out_axes=1)(keys_B)
        chosen = dict(block_length=self.block_length, noisy_length=self.noisy_length)
        copies_BM = choose_copies(choice_keys_B, corruptible_BL, **chosen)
        copied = [jnp.take_along_axis(x_BL, copies_BM, axis=1) for x_BL in (tokens_BL, corruptible_BL)]
        return Corruption(*corrupt(keys_B, *copied, **sizes), copies_BM)

    def weights(self, batch: Batch, corruption: Corruption) -> Weights:
        """The loss tokens of a batch."""
        diffusion = self.predicted(batch, corruption).sum(dtype=jnp.float32)
        ar = _ar_targets(batch)[1].sum(dtype=jnp.float32) if self.ar_weight else jnp.zeros(())
        document_BL = (without_filler(batch)["loss_mask"] > 0) & (batch["segment_ids"] > 0)
        every = corruption._replace(masked_BM=corruption.copied(document_BL))
        return Weights(ar, diffusion, self.predicted(batch, every).sum(dtype=jnp.float32))

    def sums(self, model, batch: Batch, corruption: Corruption, *, remat: str = "none") -> Sums:
        """One forward pass. The head runs on a stream only if that stream has a loss."""
        x_BTD, length = self.hidden(model, batch, corruption, remat=remat), batch["tokens"].shape[1]
        ar, diffusion, bins = jnp.zeros(()), jnp.zeros(()), (jnp.zeros(NOISE_BINS), jnp.zeros(NOISE_BINS))
        if self.ar_weight:
            targets_BL, loss_mask_BL = _ar_targets(batch)
            ce_BL = model.cross_entropy(x_BTD[:, -length:], targets_BL, loss_mask_BL)
            ar, _ = weighted_sum(ce_BL, loss_mask_BL)
        if self.diffusion_weight:
            masked_BM, noise_level_BM = self.predicted(batch, corruption), corruption.noise_level_BM
            ce_BM = model.cross_entropy(
                self.aligned(x_BTD, corruption), corruption.copied(batch["tokens"]), masked_BM
            )
            diffusion, _ = weighted_sum(ce_BM / noise_level_BM, masked_BM)
            bins = _by_noise_level(ce_BM, masked_BM, noise_level_BM)
        return Sums(ar, diffusion, *bins)

    def hidden(self, model, batch: Batch, corruption: Corruption, *, remat: str = "none") -> jax.Array:
        """x_BTD of the streams; of the last layer, the columns that something is read from."""
        length, noisy = batch["tokens"].shape[1], corruption.noisy_BM.shape[1]
        columns = noisy if self.two_streams and not self.ar_weight and self.alignment == "same_position" else None
        streams = self.streams(batch, corruption)
        return model.hidden(pattern=self.attention(length), remat=remat, columns=columns, **streams)

    def loss(self, sums: Sums, weights: Weights) -> jax.Array:
        """The step's loss, or a micro-batch's share of it, from sums and the GLOBAL weights."""
        ar, diffusion = (total / jnp.maximum(count, 1) for total, count in zip(sums[:2], weights[:2], strict=True))
        return self.ar_weight * ar + self.diffusion_weight * diffusion

    def streams(self, batch: Batch, corruption: Corruption) -> dict[str, jax.Array | None]:
        """The columns of a row, tokens, positions and segments, as the model takes them."""
        tokens_BT, positions_BT, segments_BT = corruption.noisy_BM, batch["positions"], batch["segment_ids"]
        if self.two_streams:
            with_clean = lambda noisy_BM, clean_BL: jnp.concatenate([noisy_BM, clean_BL], axis=1)  # noqa: E731
            tokens_BT = with_clean(tokens_BT, batch["tokens"])
            positions_BT = with_clean(corruption.copied(positions_BT), positions_BT)
            segments_BT = with_clean(corruption.copied(segments_BT), segments_BT)
        streams = dict(tokens_BT=tokens_BT, positions_BT=positions_BT, segment_ids_BT=segments_BT)
        return streams | dict(copies_BM=corruption.copies_BM)

    def aligned(self, x_BTD, corruption: Corruption):
        """x_BMD: what each noisy column's token is predicted from.

        Shifted, that is the column before it, and for the first of a block, as in decoding, the clean token before the
        block.
        """
        B, M = corruption.noisy_BM.shape
        if self.alignment == "same_position":
            return x_BTD[:, :M]
        if not self.two_streams:
            return shift_right(x_BTD)
        columns_BL = jnp.broadcast_to(jnp.arange(x_BTD.shape[1] - M), (B, x_BTD.shape[1] - M))
        firsts_BN = corruption.copied(columns_BL)[:, :: self.block_length]
        before_BND = jnp.take_along_axis(x_BTD[:, M:], jnp.maximum(firsts_BN - 1, 0)[:, :, None], axis=1)
        own_BNCD = x_BTD[:, :M].reshape(*firsts_BN.shape, self.block_length, -1)
        return jnp.concatenate([before_BND[:, :, None], own_BNCD[:, :, :-1]], axis=2).reshape(B, M, -1)

    def predicted(self, batch: Batch, corruption: Corruption) -> jax.Array:
        """Masked tokens that have a logit: shifted, the first token of a document has none before it."""
        if self.alignment == "same_position" or not self.diffusion_weight:
            return corruption.masked_BM
        segments_BL = batch["segment_ids"]
        before_BL = jnp.pad(segments_BL[:, :-1], ((0, 0), (1, 0)))
        return corruption.masked_BM & corruption.copied(segments_BL == before_BL)


def example_keys(key: jax.Array, count: int) -> jax.Array:
    """One key per example from its index in the global batch: independent of mesh, processes and micro-batches."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(count))


def _ar_targets(batch: Batch):
    return next_token_targets(batch["tokens"], batch["loss_mask"], batch["segment_ids"])


def _by_noise_level(ce_BL, masked_BL, noise_level_BL):
    """(sum of ce, number) of masked tokens in each of NOISE_BINS bins; a metric, so no gradient flows."""
    bin_BL = jnp.minimum(jnp.ceil(noise_level_BL * NOISE_BINS).astype(int) - 1, NOISE_BINS - 1)
    pairs = [weighted_sum(ce_BL, masked_BL & (bin_BL == index)) for index in range(NOISE_BINS)]
    return tuple(jnp.stack(column) for column in zip(*pairs, strict=True))
