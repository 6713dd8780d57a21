"""What a model predicts of held-out tokens: loss by position in the block, and whether its confidence can be believed.

A diffusion model sees each block with k of its n tokens masked, k uniform in 1..n; n / k times the loss of the masked
ones then has the bound's expectation at every position (likelihood.py). AR predicts each token from those before it.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from edlm_jax.data.pipeline import make_eval_batches
from edlm_jax.diffusion import next_token_targets
from edlm_jax.errors import InputError
from edlm_jax.evaluation.likelihood import draw_masks
from edlm_jax.models.transformer import Transformer
from edlm_jax.training.config import grid
from edlm_jax.training.objective import Corruption, Objective, example_keys

BINS = 10  # of the confidence


class Tally(NamedTuple):
    """Sums over tokens; batches add."""

    loss_C: jax.Array  # weighted negative log-likelihood, by position in the block
    tokens_C: jax.Array
    bins_X3: jax.Array  # by confidence: predictions, their confidence, how many are right


def predict(model: Transformer, c: ConfigDict, tokenizer, *, pattern: str) -> dict[str, Any]:
    """{"loss_by_position": nats per token, "ece": ..., "bins": [...]} on the held-out rows of c, as `heldout_loss`.

    The expected calibration error is the mean distance of confidence and accuracy over the bins, by their predictions.
    The mask token gets no probability, as in decoding.
    """
    C, conversion = grid(c), model.spec.conversion
    c = c.copy_and_resolve_references()
    c.objective.pattern, c.objective.noisy_length = pattern, 0
    objective = Objective.from_config(c, conversion.mask_token_id if conversion else -1)
    graphdef, state = nnx.split(model)
    total = None
    for index, batch in enumerate(make_eval_batches(c.data, tokenizer, block_length=C)):
        added = jax.device_get(_tally(graphdef, state, objective, C, batch, np.int32(index)))
        total = added if total is None else jax.tree.map(np.add, total, added)
    if total is None or not total.tokens_C.any():
        raise InputError("the held-out set has no token that carries loss")
    count_X, confidence_X, right_X = total.bins_X3.T
    filled = count_X > 0
    means = zip(confidence_X[filled] / count_X[filled], right_X[filled] / count_X[filled], count_X[filled], strict=True)
    return {
        "loss_by_position": (total.loss_C / np.maximum(total.tokens_C, 1)).tolist(),
        "ece": float(np.abs(confidence_X - right_X).sum() / count_X.sum()),
        "bins": [{"confidence": float(c), "accuracy": float(a), "predictions": int(n)} for c, a, n in means],
    }


@functools.partial(jax.jit, static_argnames=("graphdef", "objective", "C"))
def _tally(graphdef, state, objective: Objective, C: int, batch, index) -> Tally:
    model, tokens_BL = nnx.merge(graphdef, state), jnp.asarray(batch["tokens"])
    columns_L = jnp.arange(tokens_BL.shape[1])
    if objective.pattern == "causal":
        targets_BL, seen_BL = next_token_targets(*(batch[name] for name in ("tokens", "loss_mask", "segment_ids")))
        weight_BL, counted_BL, place_L = seen_BL.astype(jnp.float32), seen_BL, (columns_L + 1) % C
        x_BLD = objective.hidden(model, batch, objective.corrupt(jnp.zeros(()), batch))
    else:
        keys_B = example_keys(jax.random.fold_in(jax.random.key(0), index), len(tokens_BL))
        corruptible_BL = (batch["loss_mask"] > 0) & (batch["segment_ids"] > 0)
        masked_BL, weight_BL = jax.vmap(draw_masks, (0, 0, None))(keys_B, corruptible_BL, C)
        corruption = Corruption(jnp.where(masked_BL, objective.mask_id, tokens_BL), masked_BL, 1 / weight_BL)
        seen_BL, place_L, targets_BL = objective.predicted(batch, corruption), columns_L % C, tokens_BL
        counted_BL = objective.predicted(batch, corruption._replace(masked_BM=corruptible_BL))
        x_BLD = objective.aligned(objective.hidden(model, batch, corruption), corruption)

    def row(columns):
        x_LD, targets_L, seen_L = columns
        logits_LV = model.logits(x_LD[None])[0]
        if objective.mask_id >= 0:
            logits_LV = logits_LV.at[:, objective.mask_id].set(-jnp.inf)
        log_p_LV = jax.nn.log_softmax(logits_LV)
        ce_L = -jnp.take_along_axis(log_p_LV, targets_L[:, None], axis=1)[:, 0]
        confidence_L, right_L = jnp.exp(log_p_LV.max(axis=1)), log_p_LV.argmax(axis=1) == targets_L
        bin_L = jnp.minimum((confidence_L * BINS).astype(int), BINS - 1)
        facts_L3 = jnp.stack([jnp.ones_like(confidence_L), confidence_L, right_L], axis=1)
        return jnp.where(seen_L, ce_L, 0.0), jnp.zeros((BINS, 3)).at[bin_L].add(facts_L3 * seen_L[:, None])

    ce_BL, bins_BX3 = jax.lax.map(row, (x_BLD, targets_BL, seen_BL))  # row by row: logits are large
    at_place = lambda x_BL: jnp.zeros(C).at[place_L].add(x_BL.sum(axis=0))  # noqa: E731
    return Tally(at_place(ce_BL * weight_BL), at_place(counted_BL.astype(jnp.float32)), bins_BX3.sum(axis=0))
