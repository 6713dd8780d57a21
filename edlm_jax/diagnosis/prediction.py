"""What a model predicts of held-out tokens: loss by position in the block, and whether its confidence can be believed.

A diffusion model sees each block with k of its n tokens masked, k uniform in 1..n; n / k times the loss of the masked
ones then has the bound's expectation at every position (likelihood.py). A model of `mars` sees blocks of masks alone,
as it decodes: no bound, but what each of its masks has to say. AR predicts each token from those before it. What fills
a document's last block is masked as in training and decoding, but not counted: AR has nothing to predict there.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from edlm_jax.data.packing import without_filler
from edlm_jax.data.pipeline import Data, EvalBatches
from edlm_jax.decoding.modes import Mars, trained_mode
from edlm_jax.diffusion import Layout
from edlm_jax.diffusion.masks import FullMasks
from edlm_jax.errors import InputError
from edlm_jax.evaluation.heldout import heldout_objective
from edlm_jax.evaluation.likelihood import log_probabilities
from edlm_jax.models.transformer import Transformer
from edlm_jax.training.heldout import heldout_noise
from edlm_jax.training.objective import Objective

BINS = 10  # of the confidence


class Tally(NamedTuple):
    """Sums over tokens; batches add."""

    loss_C: jax.Array  # weighted negative log-likelihood, by position in the block
    tokens_C: jax.Array
    bins_X3: jax.Array  # by confidence: predictions, their confidence, how many are right


def predict(model: Transformer, data: Data, tokenizer, layout: Layout) -> dict[str, Any]:
    """{"loss_by_position": nats per token, "ece": ..., "bins": [...]} on held-out rows, as `heldout_loss`.

    The expected calibration error is the mean distance of confidence and accuracy over the bins, by their predictions.
    The mask token gets no probability, as in decoding.
    """
    C, objective, (graphdef, state) = data.block_length, heldout_objective(model, layout), nnx.split(model)
    if objective.noise and trained_mode(layout) is Mars:
        objective = dataclasses.replace(objective, noise=FullMasks(objective.noise.mask_id))
    total = None
    for index, batch in enumerate(EvalBatches(data, tokenizer)):
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
    model, document, columns_L = nnx.merge(graphdef, state), without_filler(batch), jnp.arange(batch["tokens"].shape[1])
    ar, corruption = objective.noise is None, heldout_noise(objective, batch, index)
    x_BLD, targets_BL, seen_BL = objective.reads(model, document if ar else batch, corruption)
    weight_BL, counted_BL, place_L = 1 / corruption.noise_level_BM, seen_BL, (columns_L + ar) % C
    if not ar:
        document_BL = document["loss_mask"] > 0
        seen_BL, counted_BL = seen_BL & document_BL, objective.streams(batch, corruption).predicted(document_BL)

    def row(columns):
        x_LD, targets_L, seen_L = columns
        log_p_LV = log_probabilities(model, x_LD)
        ce_L = -jnp.take_along_axis(log_p_LV, targets_L[:, None], axis=1)[:, 0]
        confidence_L, right_L = jnp.exp(log_p_LV.max(axis=1)), log_p_LV.argmax(axis=1) == targets_L
        bin_L = jnp.minimum((confidence_L * BINS).astype(int), BINS - 1)
        facts_L3 = jnp.stack([jnp.ones_like(confidence_L), confidence_L, right_L], axis=1)
        return jnp.where(seen_L, ce_L, 0.0), jnp.zeros((BINS, 3)).at[bin_L].add(facts_L3 * seen_L[:, None])

    ce_BL, bins_BX3 = jax.lax.map(row, (x_BLD, targets_BL, seen_BL))  # row by row: logits are large
    at_place = lambda x_BL: jnp.zeros(C).at[place_L].add(x_BL.sum(axis=0))  # noqa: E731
    return Tally(at_place(ce_BL * weight_BL), at_place(counted_BL.astype(jnp.float32)), bins_BX3.sum(axis=0))
