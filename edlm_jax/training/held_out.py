"""The held-out loss of a run: the same batches and the same noise at every evaluation."""

from collections.abc import Callable, Iterable

import jax
import numpy as np

from edlm_jax.errors import InputError
from edlm_jax.training.metrics import noise_level_losses
from edlm_jax.training.objective import Objective


def held_out_loss(
    eval_step: Callable, objective: Objective, params: dict, batches: Iterable[dict], to_device: Callable
) -> dict[str, float]:
    """One global mean over all held-out batches; {} without batches.

    `eval_loss` is what is optimised, `eval_diffusion_loss` and `eval_ar_loss` are nats per token.
    """
    totals = None
    for index, batch in enumerate(batches):
        jax.block_until_ready(totals)  # of the batch before: whoever ends `batches` early waits for two at most
        added = eval_step(params, to_device(batch), np.int32(index))
        totals = added if totals is None else jax.tree.map(lambda a, b: a + b, totals, added)
    if totals is None:
        return {}
    sums, weights = jax.device_get(totals)
    if not max(weights):
        raise InputError("the held-out set has no token that carries loss")
    scalars = dict(eval_loss=float(objective.loss(sums, weights)))
    if weights.ar:
        scalars["eval_ar_loss"] = float(sums.ar / weights.ar)
    if weights.diffusion:
        scalars["eval_diffusion_loss"] = float(sums.diffusion / max(weights.tokens, 1))
        scalars["eval_diffusion_objective"] = float(sums.diffusion / weights.diffusion)
    bins = noise_level_losses(sums.bin_ce, sums.bin_count)
    return scalars | {f"eval_{name}": value for name, value in bins.items()}
