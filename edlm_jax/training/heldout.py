"""The held-out loss of a run, with the noise and the denominators of training, and the bound that models of all kinds
are compared by: nats per token, as an AR model's loss is. `edlm evaluate --task=heldout` gives the same number.
"""

import functools
from collections.abc import Callable, Iterable

import jax
import numpy as np
from flax import nnx

from edlm_jax.data.packing import without_filler
from edlm_jax.diffusion import Batch, Corruption, Layout, example_keys
from edlm_jax.diffusion.masks import EvenCounts
from edlm_jax.diffusion.streams import learnable
from edlm_jax.diffusion.terms import MaskedTokens, NextToken
from edlm_jax.errors import InputError
from edlm_jax.parallel.mesh import sum_of_pieces
from edlm_jax.training.metrics import noise_level_losses
from edlm_jax.training.objective import Objective, no_noise


def heldout_metrics(
    eval_step: Callable, bound_step: Callable | None, objective: Objective, params: dict, batches: Iterable[dict]
) -> dict[str, float]:
    """One global mean each over all held-out batches, with the same noise at every call; {} without batches.

    `eval_loss` is what is optimised; `eval_bound`, or `eval_ar_loss` of an AR run, are the nats per token of a held-out
    set (beside blocks `eval_ar_loss` counts what fills the last ones, too, as its term learns it);
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
    if not max(weights.values()):
        raise InputError("the held-out set has no token that carries loss")
    scalars = dict(eval_loss=float(objective.loss(sums, weights)))
    if nats:
        scalars["eval_bound"] = float(nats[0] / max(nats[1], 1))
    for term in objective.terms:
        found = sums[term.name]
        values = term.losses(found, weights) if weights[term.name] else {}
        values |= noise_level_losses(found["bin_ce"], found["bin_count"]) if "bin_ce" in found else {}
        scalars |= {f"eval_{name}": float(value) for name, value in values.items()}
    return scalars


def make_bound_step(graphdef: nnx.GraphDef, objective: Objective, remat: str, pieces: int) -> Callable | None:
    """`bound_step(params, batch, index) -> (nats, tokens)` of a model in training; None for AR, which needs none."""
    if objective.noise is None:
        return None
    objective = measured(objective.layout, objective.noise.mask_id)
    return lambda params, batch, index: nats(graphdef, params, objective, batch, index, remat, pieces)


def measured(layout: Layout, mask_id: int) -> Objective:
    """AR alone or diffusion alone, one noisy copy of every block; blocks of one stream stand after clean ones, too."""
    if not layout.noisy:
        return Objective(layout, None, (NextToken(),))
    return Objective(layout.as_decoded(), EvenCounts(mask_id), (MaskedTokens(),))


@functools.partial(jax.jit, static_argnames=("graphdef", "objective", "remat", "pieces"))
def nats(
    graphdef: nnx.GraphDef,
    state,
    objective: Objective,
    batch: Batch,
    index: jax.Array,
    remat: str = "none",
    pieces: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """(nats, tokens) of a batch by a `measured` objective; AR has nothing to predict in what fills last blocks."""
    (term,) = objective.terms
    batch = batch if term.needs_noise else without_filler(batch)
    corruption = heldout_noise(objective, batch, index)
    weights = objective.weights(batch, corruption)
    total = lambda piece: objective.sums(nnx.merge(graphdef, state), *piece, remat=remat)[term.name]["loss"]  # noqa: E731
    return sum_of_pieces(total, (batch, corruption), pieces), weights["tokens" if term.needs_noise else term.name]


def heldout_noise(objective: Objective, batch: Batch, index: jax.Array) -> Corruption:
    """Noise with which sum(ce / t) is the bound, see `EvenCounts`; nothing is masked for AR."""
    if objective.noise is None:
        return no_noise(batch)
    B, L = batch["tokens"].shape
    keys_B = example_keys(jax.random.fold_in(jax.random.key(0), index), B)
    unit = objective.layout.together(L)  # the row where blocks see later ones: they are not decoded one by one
    return objective.noise.corrupt(keys_B, batch["tokens"], learnable(batch), unit)
