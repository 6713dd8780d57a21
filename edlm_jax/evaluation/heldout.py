"""Held-out loss in nats per token: next-token loss of an AR model, the diffusion bound of a converted one."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from edlm_jax.data.counts import totals
from edlm_jax.data.packing import without_filler
from edlm_jax.data.pipeline import Data, EvalBatches
from edlm_jax.diffusion import Layout
from edlm_jax.errors import InputError
from edlm_jax.models.spec import ModelSpec
from edlm_jax.models.transformer import Transformer
from edlm_jax.parallel.mesh import mesh_of, on_mesh
from edlm_jax.training.heldout import measured, nats
from edlm_jax.training.objective import Objective

ROW, ROWS = 512, 512  # tokens of a row, and rows, where no config says how many


def heldout_rows(spec: ModelSpec, source: Mapping[str, Any], *, batch_size: int, rows: int = ROWS) -> Data:
    """The rows of a source on which a model is measured that was trained elsewhere.

    `rows` are measured, of up to ROW tokens each, or of one block where that is longer, `batch_size` or a few less at a
    time; as many as fill the batches.
    """
    batches, C = -(-rows // batch_size), spec.conversion.block_length if spec.conversion else 1
    return Data(
        batch_size=-(-rows // batches),
        length=min(max(ROW, C), spec.max_length) // C * C,
        block_length=C,
        grid=spec.conversion.grid if spec.conversion else "response",
        eval_sources=(dict(source),),
        eval_batches=batches,
    )


def heldout_loss(model: Transformer, data: Data, tokenizer, layout: Layout) -> float:
    """The loss over at most `eval_batches` of `eval_sources`, of what a layout learns, where the model lies.

    AUTOREGRESSIVE gives the AR loss. Any other gives sum(ce / t), which bounds the negative log-likelihood from above,
    so that both are on one scale: nats per learnable token of the same documents, packed to the same grid. A diffusion
    model says where a document ends by filling its last block, so its sum includes that filler; AR says it by one
    end token and has no loss on what follows. Neither counts filler among the tokens. (Of text without a prompt AR
    predicts all but the first token.)
    """
    objective, (graphdef, state), sums = heldout_objective(model, layout), nnx.split(model), np.zeros(2)
    with on_mesh(mesh_of(state)):
        for index, batch in enumerate(EvalBatches(data, tokenizer)):
            sums += jax.device_get(nats(graphdef, state, objective, batch, np.int32(index)))
    total, tokens = sums.tolist()
    if not tokens:
        raise InputError("the held-out set has no token that carries loss")
    return total / tokens


def heldout_data(data: Data, tokenizer, mask_id: int | None) -> dict[str, int]:
    """What a held-out loss is measured on, and what of its sources is not."""
    batches = EvalBatches(data, tokenizer, mask_id=mask_id)
    found = dict(rows=0, tokens=0, documents=0)
    for batch in batches:
        found["rows"] += int((batch["segment_ids"] > 0).any(axis=1).sum())
        found["tokens"] += int((without_filler(batch)["loss_mask"] > 0).sum())
        found["documents"] += int(batch["segment_ids"].max(axis=1).sum())  # or parts of long ones
    return found | dict(of_documents=sum(tally.size for tally in batches.tallies)) | totals(batches.tallies)


def heldout_objective(model: Transformer, layout: Layout) -> Objective:
    """The objective by which a model is measured: AR alone or diffusion alone, one noisy copy of every block."""
    return measured(layout, model.spec.conversion.mask_token_id if model.spec.conversion else -1)
