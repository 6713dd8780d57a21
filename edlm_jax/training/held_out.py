"""The held-out loss of a run, and the bound that models of all kinds are compared by.

The loss has the noise of training and the denominators of training: what is optimised, on other documents. The bound is
nats per token, as an AR model's loss is: `edlm evaluate --task=heldout` gives the same number.
"""

import dataclasses
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from edlm_jax.diffusion import draw_masks
from edlm_jax.errors import InputError
from edlm_jax.training.metrics import noise_level_losses
from edlm_jax.training.objective import Batch, Corruption, Objective, example_keys


def held_out_loss(
    eval_step: Callable, bound_step: Callable | None, objective: Objective, params: dict, batches: Iterable[dict]
) -> dict[str, float]:
    """One global mean each over all held-out batches, with the same noise at every call; {} without batches.

    `eval_loss` is what is optimised; `eval_bound` and `eval_ar_loss` are the nats per token of a held-out set;
    `eval_diffusion_loss` has the noise of training, beside whose `diffusion_loss` it stands.
    """
    totals = None
    for index, batch in enumerate(batches):
        jax.block_until_ready(totals)  # of the batch before: whoever ends `batches` early waits for two at most
        number = np.int32(index)
        added = eval_step(params, batch, number), bound_step(params, batch, number) if bound_step else ()
        totals = added if totals is None else jax.tree.map(lambda a, b: a + b, totals, added)
    if totals is None:
        return {}
    (sums, weights), nats = jax.device_get(totals)
    if not max(weights):
        raise InputError("the held-out set has no token that carries loss")
    scalars = dict(eval_loss=float(objective.loss(sums, weights)))
    if weights.ar:
        scalars["eval_ar_loss"] = float(sums.ar / weights.ar)
    if weights.diffusion:
        scalars["eval_bound"] = float(nats[0] / max(nats[1], 1))
        scalars["eval_diffusion_loss"] = float(sums.diffusion / max(weights.tokens, 1))
        scalars["eval_diffusion_objective"] = float(sums.diffusion / weights.diffusion)
    bins = noise_level_losses(sums.bin_ce, sums.bin_count)
    return scalars | {f"eval_{name}": value for name, value in bins.items()}


def make_bound_step(graphdef: nnx.GraphDef, objective: Objective, remat: str) -> Callable | None:
    """`bound_step(params, batch, index) -> (nats, tokens)` of a model in training; None for AR, which needs none."""
    if not objective.diffusion_weight:
        return None
    objective = measured(objective)
    return jax.jit(
        lambda params, batch, index: bound(nnx.merge(graphdef, params), objective, batch, index, remat=remat)
    )


def measured(objective: Objective) -> Objective:
    """AR alone or diffusion alone, one noisy copy of every block.

    Blocks of one noisy stream are measured after clean ones, too, as they are decoded.
    """
    if objective.pattern == "causal":
        return objective
    pattern = "clean_context" if objective.pattern == "block_causal" else objective.pattern
    return dataclasses.replace(objective, pattern=pattern, noisy_length=0, ar_weight=0.0, diffusion_weight=1.0)


def bound(model, objective: Objective, batch: Batch, index: jax.Array, remat: str = "none"):
    """(nats, tokens) of a batch by a `measured` diffusion objective."""
    corruption = heldout_noise(objective, batch, index)
    nats = objective.sums(model, batch, corruption, remat=remat).diffusion
    return nats, objective.weights(batch, corruption).tokens


def heldout_noise(objective: Objective, batch: Batch, index: jax.Array) -> Corruption:
    """Noise with which sum(ce / t) is the bound, however the model was trained; nothing is masked for AR.

    Of each block k of its n tokens, k uniform in 1..n, at noise level k / n (likelihood.py): the position-weighted
    noise of training has another mean. Blocks that see later ones are not decoded one by one: their unit is the row.
    """
    if not objective.diffusion_weight:
        return objective.corrupt(jnp.zeros(()), batch)
    B, L = batch["tokens"].shape
    keys_B = example_keys(jax.random.fold_in(jax.random.key(0), index), B)
    corruptible_BL = (batch["loss_mask"] > 0) & (batch["segment_ids"] > 0)
    unit = L if objective.pattern == "bidirectional" else objective.block_length
    masked_BL, weight_BL = jax.vmap(draw_masks, (0, 0, None))(keys_B, corruptible_BL, unit)
    return Corruption(jnp.where(masked_BL, objective.mask_id, batch["tokens"]), masked_BL, 1 / weight_BL)
