"""Held-out loss in nats per token: next-token loss of an AR model, the diffusion bound of a converted one."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from edlm_jax.data.counts import totals
from edlm_jax.data.packing import without_filler
from edlm_jax.data.pipeline import make_eval_batches
from edlm_jax.diffusion import Batch, find_layout
from edlm_jax.errors import InputError
from edlm_jax.models.spec import ModelSpec
from edlm_jax.models.transformer import Transformer
from edlm_jax.training.config import default_config, grid
from edlm_jax.training.held_out import bound, heldout_noise, measured
from edlm_jax.training.objective import Objective

ROW, ROWS = 512, 512  # tokens of a row, and rows, where no config says how many


def heldout_config(spec: ModelSpec, source: Mapping[str, Any], *, batch_size: int, rows: int = ROWS) -> ConfigDict:
    """The config under which a model that was trained elsewhere is measured on a source.

    `rows` are measured, of up to ROW tokens each, `batch_size` or a few less at a time; as many as fill the batches.
    """
    c = default_config()
    c.objective.pattern = "causal"
    if spec.conversion:
        c.objective.update(
            pattern=spec.conversion.pattern,
            alignment=spec.conversion.alignment,
            block_length=spec.conversion.block_length,
            grid=spec.conversion.grid,
        )
    batches = -(-rows // batch_size)
    batch_size = -(-rows // batches)
    c.data.update(batch_size=batch_size, eval_batches=batches, eval_sources=(dict(source),))
    c.data.length = min(ROW, spec.max_length) // grid(c) * grid(c)
    return c


def heldout_loss(model: Transformer, c: ConfigDict, tokenizer, *, pattern: str) -> float:
    """The loss over at most c.data.eval_batches of c.data.eval_sources, under the objective of c with this pattern.

    "causal" gives the AR loss. Any other gives sum(ce / t), which bounds the negative log-likelihood from above, so
    that both are on one scale: nats per learnable token of the same documents, packed to the same grid. A diffusion
    model says where a document ends by filling its last block, so its sum includes that filler; AR says it by one
    end token and has no loss on what follows. Neither counts filler among the tokens. (Of text without a prompt AR
    predicts all but the first token.)
    """
    objective, (graphdef, state) = heldout_objective(c, model, pattern), nnx.split(model)
    batches = make_eval_batches(c.data, tokenizer, block_length=grid(c), grid=c.objective.grid)
    nats, tokens = 0.0, 0.0
    for index, batch in enumerate(batches):
        more_nats, more_tokens = jax.device_get(_nats(graphdef, state, objective, batch, np.int32(index)))
        nats, tokens = nats + float(more_nats), tokens + float(more_tokens)
    if not tokens:
        raise InputError("the held-out set has no token that carries loss")
    return nats / tokens


def heldout_data(c: ConfigDict, tokenizer, mask_id: int | None) -> dict[str, int]:
    """What a held-out loss is measured on, and what of its sources is not."""
    batches = make_eval_batches(c.data, tokenizer, block_length=grid(c), grid=c.objective.grid, mask_id=mask_id)
    found = dict(rows=0, tokens=0, documents=0)
    for batch in batches:
        found["rows"] += int((batch["segment_ids"] > 0).any(axis=1).sum())
        found["tokens"] += int((without_filler(batch)["loss_mask"] > 0).sum())
        found["documents"] += int(batch["segment_ids"].max(axis=1).sum())  # or parts of long ones
    return found | dict(of_documents=sum(tally.size for tally in batches.tallies)) | totals(batches.tallies)


def heldout_objective(c: ConfigDict, model: Transformer, pattern: str) -> Objective:
    """The objective by which a model is measured: AR alone or diffusion alone, one noisy copy of every block."""
    conversion, o = model.spec.conversion, c.objective
    layout = find_layout(pattern, o.block_length, o.alignment)
    return measured(layout, conversion.mask_token_id if conversion else -1)


@functools.partial(jax.jit, static_argnames=("graphdef", "objective"))
def _nats(graphdef, state, objective: Objective, batch: Batch, index) -> tuple[jax.Array, jax.Array]:
    """The loss of a batch, and over how many tokens."""
    model = nnx.merge(graphdef, state)
    if objective.noise is not None:
        return bound(model, objective, batch, index)
    document = without_filler(batch)
    corruption = heldout_noise(objective, document, index)
    return objective.sums(model, document, corruption)["ar"]["loss"], objective.weights(document, corruption)["ar"]
