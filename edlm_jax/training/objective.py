"""What is learned from a batch: a layout, a noise and the terms of the loss, with nothing divided yet."""

import dataclasses
from functools import reduce
from operator import add, or_

import jax
import jax.numpy as jnp

from edlm_jax.data.packing import without_filler
from edlm_jax.diffusion.noise import Corruption, Noise
from edlm_jax.diffusion.streams import Batch, Layout, Streams, learnable
from edlm_jax.diffusion.terms import Sums, Term, mean
from edlm_jax.errors import InputError
from edlm_jax.models.spec import ModelSpec


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is learned; hashable, so that it may be static under jit."""

    layout: Layout
    noise: Noise | None  # None: no term needs it
    terms: tuple[Term, ...]
    anneal_steps: int = 0  # over which attention grows from causal to what the layout says
    annealed: tuple[jax.Array, jax.Array] | None = None  # (key, share) of one of these steps, see `at_step`

    def of_model(self, spec: ModelSpec) -> "Objective":
        """The same with the mask token and the vocabulary of a model."""
        mask_id = spec.conversion.mask_token_id if spec.conversion else -1
        return dataclasses.replace(self, noise=self.noise and self.noise.of_model(mask_id, spec.vocab_size))

    def under(self, noise: Noise) -> "Objective":
        """The same with another noise, and as many noisy views, and blocks in a group, as it needs."""
        layout = self.layout
        if noise.views > 1 and not layout.two_streams:
            raise InputError("config.objective.noise: its pairs of noisy blocks need a pattern with a clean stream")
        if noise.group > 1 and not (layout.two_streams and layout.noisy == "bidirectional"):
            raise InputError(
                "config.objective.group: blocks that are noisy together need a pattern with a clean stream and noisy "
                "blocks that look both ways (clean_context, semi_block)"
            )
        layout = dataclasses.replace(layout, views=noise.views, group=noise.group)
        return dataclasses.replace(self, layout=layout, noise=noise)

    def at_step(self, key: jax.Array, step: jax.Array) -> "Objective":
        """The same in a step of a run: while attention is annealed, it sees of what comes later a share of the pairs.

        DiffuLLaMA (arXiv 2410.17891): causal, or Bernoulli(r) for each pair, one draw a step, with r = min(1, step /
        anneal_steps). What is measured sees all.
        """
        if not self.anneal_steps:
            return self
        return dataclasses.replace(self, annealed=(key, jnp.minimum(step / self.anneal_steps, 1)))

    def corrupt(self, keys_B: jax.Array, batch: Batch) -> Corruption:
        """Noise for each row from its own key, where there is loss; nothing without a term that needs it."""
        if self.noise is None:
            return no_noise(batch)
        sizes = self.layout.block_length, self.layout.noisy_length
        return self.noise.corrupt(keys_B, batch["tokens"], learnable(batch), *sizes)

    def streams(self, batch: Batch, corruption: Corruption) -> Streams:
        """The columns of a row."""
        return Streams(self.layout, batch, corruption, {})

    def weights(self, batch: Batch, corruption: Corruption) -> dict[str, jax.Array]:
        """The loss tokens of a batch, by term: the denominators.

        And "tokens", those that might have been masked, without what fills last blocks: nats per token, as reported
        beside the loss, are on the scale of held-out losses.
        """
        streams = self.streams(batch, corruption)
        document_BL = (without_filler(batch)["loss_mask"] > 0) & (batch["segment_ids"] > 0)
        tokens = streams.predicted(corruption.copied(document_BL)).sum(dtype=jnp.float32)
        return {term.name: term.count(streams) for term in self.terms} | {"tokens": tokens}

    def sums(self, model, batch: Batch, corruption: Corruption, *, remat: str = "none") -> dict[str, Sums]:
        """What a batch adds up to, by term, of one forward pass; the head runs on columns that have a loss."""
        if corruption.guessed_BM is not None:
            corruption = self.guess(model, batch, corruption, remat=remat)
        x_BTD, streams = self.hidden(model, batch, corruption, remat=remat), self.streams(batch, corruption)
        return {term.name: term.sums(streams, model, x_BTD) for term in self.terms}

    def reads(self, model, batch: Batch, corruption: Corruption) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(hidden states, targets, which of them are wanted) of an objective of one term, see `Term.reads`."""
        (term,) = self.terms
        return term.reads(self.streams(batch, corruption), self.hidden(model, batch, corruption))

    def guess(self, model, batch: Batch, corruption: Corruption, *, remat: str = "none") -> Corruption:
        """The model's best tokens in the places that wait for them, from a forward pass without gradient."""
        x_BTD = jax.lax.stop_gradient(self.hidden(model, batch, corruption, remat=remat))
        logits = lambda x_MD: model.logits(x_MD[None])[0].at[:, self.noise.mask_id].set(-jnp.inf)  # noqa: E731
        x_BMD = self.streams(batch, corruption).aligned(x_BTD)
        best_BM = jax.lax.map(lambda x_MD: jnp.argmax(logits(x_MD), axis=-1), x_BMD)  # row by row: logits are large
        noisy_BM = jnp.where(corruption.guessed_BM, best_BM, corruption.noisy_BM)
        return corruption._replace(noisy_BM=noisy_BM, guessed_BM=None)

    def hidden(self, model, batch: Batch, corruption: Corruption, *, remat: str = "none") -> jax.Array:
        """x_BTD of the streams; of the last layer, the columns that something is read from."""
        length, columns = batch["tokens"].shape[1], None
        if self.layout.two_streams and not any(term.reads_clean(self.layout) for term in self.terms):
            columns = self.layout.noisy_columns(length)
        inputs = self.streams(batch, corruption).inputs
        if self.annealed:
            opened_TT = jax.random.bernoulli(*self.annealed, (length, length))
            inputs |= dict(seen_TT=opened_TT | jnp.tri(length, dtype=bool))
        return model.hidden(pattern=self.layout.pattern(length), remat=remat, columns=columns, **inputs)

    def loss(self, sums: dict[str, Sums], weights: dict[str, jax.Array]) -> jax.Array:
        """The step's loss, or a micro-batch's share of it, from sums and the GLOBAL weights."""
        return reduce(add, (term.weight * mean(sums[term.name]["loss"], weights[term.name]) for term in self.terms))

    def metrics(self, sums: dict[str, Sums], weights: dict[str, jax.Array], streams: Streams) -> dict[str, jax.Array]:
        """What a step reports."""
        found = (term.metrics(sums[term.name], weights, streams) for term in self.terms)
        return reduce(or_, found, {"loss": self.loss(sums, weights)})


def no_noise(batch: Batch) -> Corruption:
    """The clean tokens in the noisy stream's place."""
    shape = batch["tokens"].shape
    return Corruption(batch["tokens"], jnp.zeros(shape, bool), jnp.ones(shape))
