"""One optimizer step, jitted as a whole: corruption, two-stream forward, backward in micro-batches, AdamW."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from edlm_jax.training.mesh import micro_batches
from edlm_jax.training.objective import Batch, Corruption, Objective, Sums, Weights, example_keys
from edlm_jax.training.optimizer import make_optimizer, make_schedule

_EVALUATION = 2**31 - 1  # stands where a step number would, so that held-out noise is never a step's noise


class TrainState(NamedTuple):
    """All that a step changes. `params` is the plain tree of nnx.split, float32."""

    step: jax.Array
    params: dict
    opt_state: optax.OptState


def choose_block_length(c: ConfigDict, step: int) -> int:
    """The block length of a step, drawn on the host from (seed, step): each length is its own compiled program.

    A static length keeps the pattern's kernels exact; `lax.switch` would compile every branch into one program and keep
    the largest one's memory.
    """
    choices = c.objective.random_block_lengths
    if not choices or c.objective.pattern == "causal":
        return c.objective.block_length
    return int(np.random.default_rng((c.seed, step)).choice(choices))


def make_train_step(c: ConfigDict, graphdef: nnx.GraphDef, objective: Objective, shardings: TrainState) -> Callable:
    """`train_step(state, batch, *, block_length) -> (state, replicated metrics)`; the state is donated."""
    optimizer, schedule = make_optimizer(c), make_schedule(c)

    @functools.partial(
        jax.jit,
        static_argnames="block_length",
        donate_argnums=0,
        out_shardings=(shardings, shardings.step),
    )
    def train_step(state: TrainState, batch: Batch, *, block_length: int):
        drawn = dataclasses.replace(objective, block_length=block_length)
        key = jax.random.fold_in(jax.random.key(c.seed), state.step)
        corruption = drawn.corrupt(example_keys(key, batch["tokens"].shape[0]), batch)
        weights = drawn.weights(batch, corruption)
        count = micro_batches(c, batch["tokens"].shape[0])
        accumulate = functools.partial(_accumulate, graphdef, drawn, count, c.remat, shardings.params)
        sums, grads = accumulate(state.params, batch, corruption, weights)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = _metrics(drawn, batch, corruption, sums, weights)
        metrics |= dict(grad_norm=optax.tree.norm(grads), learning_rate=schedule(state.step))
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def make_eval_step(c: ConfigDict, graphdef: nnx.GraphDef, objective: Objective) -> Callable:
    """`eval_step(params, batch, index) -> (Sums, Weights)`: the noise of a batch is the same at every evaluation."""

    @jax.jit
    def eval_step(params: dict, batch: Batch, index: jax.Array):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(c.seed), _EVALUATION), index)
        corruption = objective.corrupt(example_keys(key, batch["tokens"].shape[0]), batch)
        sums = objective.sums(nnx.merge(graphdef, params), batch, corruption, remat=c.remat)
        return sums, objective.weights(batch, corruption)

    return eval_step


def _accumulate(
    graphdef, objective, count, remat, shardings, params, batch: Batch, corruption: Corruption, weights: Weights
):
    """(sums, gradient) of the whole batch in `count` micro-batches.

    Each micro-batch's loss is its sums over the GLOBAL weights, hence their gradients add up to the gradient of the
    global mean: nothing is averaged over micro-batches, and ragged ones count by their tokens.
    """

    def total(params, batch, corruption):
        sums = objective.sums(nnx.merge(graphdef, params), batch, corruption, remat=remat)
        return objective.loss(sums, weights), sums

    def grad(*args):
        grads, sums = jax.grad(total, has_aux=True)(*args)
        return jax.lax.with_sharding_constraint(grads, shardings), sums  # split at once, like the parameters

    if count == 1:
        grads, sums = grad(params, batch, corruption)
        return sums, grads

    def body(carry, micro):
        grads, sums = grad(params, *micro)
        return jax.tree.map(jnp.add, carry, (sums, grads)), None

    micro = jax.tree.map(functools.partial(_split_rows, count), (batch, corruption))
    first = jax.tree.map(lambda x: x[0], micro)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(grad, params, *first)[::-1])
    return jax.lax.scan(body, zeros, micro)[0]


def _split_rows(count: int, x_BL: jax.Array) -> jax.Array:
    """[B, L] -> [count, B / count, L], row r in micro-batch r % count: a device splits its own rows, none move."""
    return x_BL.reshape(x_BL.shape[0] // count, count, *x_BL.shape[1:]).swapaxes(0, 1)


def _metrics(objective, batch: Batch, corruption: Corruption, sums: Sums, weights: Weights) -> dict[str, jax.Array]:
    mean = lambda total, count: total / jnp.maximum(count, 1)  # noqa: E731
    corruptible = corruption.copied(batch["loss_mask"] > 0).sum(dtype=jnp.float32)
    metrics = dict(
        loss=objective.loss(sums, weights),
        tokens=(batch["segment_ids"] > 0).sum(dtype=jnp.float32),
    )
    if objective.diffusion_weight:
        metrics |= dict(
            diffusion_loss=mean(sums.diffusion, weights.diffusion),
            masked_fraction=mean(weights.diffusion, corruptible),
            bin_ce=sums.bin_ce,
            bin_count=sums.bin_count,
        )
    if objective.ar_weight:
        metrics |= dict(ar_loss=mean(sums.ar, weights.ar))
    return metrics
