"""Held-out loss in nats per token: next-token loss of an AR model, the diffusion bound of a converted one."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from edlm_jax.data.pipeline import make_eval_batches
from edlm_jax.models.spec import ModelSpec
from edlm_jax.models.transformer import Transformer
from edlm_jax.training.config import default_config, grid
from edlm_jax.training.objective import Objective
from edlm_jax.training.step import make_eval_step

ROW = 512  # tokens of a row where no config says how long


def heldout_config(spec: ModelSpec, source: Mapping[str, Any], *, batch_size: int) -> ConfigDict:
    """The config under which a model that was trained elsewhere is measured on a source."""
    c = default_config()
    c.objective.pattern = "causal"
    if spec.conversion:
        c.objective.update(
            pattern=spec.conversion.pattern,
            alignment=spec.conversion.alignment,
            block_length=spec.conversion.block_length,
        )
    c.data.update(batch_size=batch_size, eval_sources=(dict(source),))
    c.data.length = min(ROW, spec.max_length) // grid(c) * grid(c)
    return c


def heldout_loss(model: Transformer, c: ConfigDict, tokenizer, *, pattern: str) -> float:
    """The loss over at most c.data.eval_batches of c.data.eval_sources, under the objective of c with this pattern.

    "causal" gives the AR loss. Any other gives sum(ce / t) over all learnable tokens, which bounds the negative
    log-likelihood from above, so that both are on one scale. Both see the same rows, packed to the same grid.
    """
    block_length = grid(c)
    c = c.copy_and_resolve_references()
    c.objective.pattern, c.objective.noisy_length = pattern, 0  # each block once: the sum is then the whole bound
    conversion = model.spec.conversion
    objective = Objective.from_config(c, conversion.mask_token_id if conversion else -1)
    graphdef, state = nnx.split(model)
    params = nnx.to_pure_dict(state)
    eval_step = make_eval_step(c, graphdef, objective)
    total, weight = 0.0, 0.0
    batches = make_eval_batches(c.data, tokenizer, block_length=block_length)
    for index, batch in enumerate(batches):
        sums, weights = jax.device_get(eval_step(params, batch, index))
        if pattern == "causal":
            total, weight = total + float(sums.ar), weight + float(weights.ar)
        else:
            total, weight = total + float(sums.diffusion), weight + float((batch["loss_mask"] > 0).sum())
    return total / weight
