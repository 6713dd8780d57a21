"""One optimizer step, jitted as a whole: corruption, two-stream forward, backward in micro-batches, AdamW."""

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from edlm_jax.diffusion import Batch, example_keys
from edlm_jax.models.lora import Lora, combine, partition
from edlm_jax.parallel.mesh import in_pieces, sum_of_pieces
from edlm_jax.training.objective import Objective
from edlm_jax.training.optimizer import Optimizer, make_optimizer, make_schedule

if TYPE_CHECKING:
    from edlm_jax.training.teacher import Teacher

_EVALUATION = _OF_ALL_ROWS = 2**31 - 1  # stand where a step's number would, or a row's, and are none of them


class TrainState(NamedTuple):
    """All that a step changes. `params` is the plain tree of nnx.split; `opt_state` is of those that are trained."""

    step: jax.Array
    params: dict
    opt_state: optax.OptState


class Numbers(NamedTuple):
    """What runs may differ in and still share a compiled program, which takes these as arguments."""

    seed: np.uint32
    learning_rate: np.float32
    final_learning_rate: np.float32
    half_life: np.float32  # looked at where the config's is a positive number: 0 and None are other programs
    teacher: dict | None = None  # the parameters of `Teacher`

    @classmethod
    def of(cls, seed: int, optimizer: Optimizer, half_life: float | None) -> "Numbers":
        """The numbers of a run."""
        rates = np.float32(optimizer.learning_rate), np.float32(optimizer.final_learning_rate)
        return cls(np.uint32(seed % 2**32), *rates, np.float32(half_life or 0))

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        """With the learning rates as arguments."""
        final = self.final_learning_rate
        return dataclasses.replace(optimizer, learning_rate=self.learning_rate, final_learning_rate=final)

    def objective(self, objective: Objective, **layout) -> Objective:
        """With the half-life as an argument, and these fields of the layout."""
        noise = objective.noise and objective.noise.at(self.half_life)
        return dataclasses.replace(objective, layout=dataclasses.replace(objective.layout, **layout), noise=noise)


def make_train_step(
    graphdef: nnx.GraphDef,
    objective: Objective,
    optimizer: Optimizer,
    shardings: TrainState,
    *,
    lora: Lora | None = None,
    remat: str = "none",
    teacher: "Teacher | None" = None,
) -> Callable:
    """`train_step(state, batch, numbers, *, block_length) -> (state, replicated metrics)`; the state is donated."""

    @jax.jit(static_argnames="block_length", donate_argnums=0, out_shardings=(shardings, shardings.step))
    def train_step(state: TrainState, batch: Batch, numbers: Numbers, *, block_length: int):
        drawn, rated = numbers.objective(objective, block_length=block_length), numbers.optimizer(optimizer)
        key = jax.random.fold_in(jax.random.key(numbers.seed), state.step)
        drawn = drawn.at_step(jax.random.fold_in(key, _OF_ALL_ROWS), state.step)
        corruption = drawn.corrupt(example_keys(key, batch["tokens"].shape[0]), batch)
        weights = drawn.weights(batch, corruption)
        trained, frozen = partition(state.params, lora)
        if teacher:
            corruption = teacher.look(numbers.teacher, state.params, batch, corruption, optimizer.accumulation)

        def total(trained, batch, corruption):
            model = nnx.merge(graphdef, combine(trained, frozen))
            sums = drawn.sums(model, batch, corruption, remat=remat)
            return drawn.loss(sums, weights), sums

        split = partition(shardings.params, lora)[0]
        grads, sums = _accumulate(total, trained, (batch, corruption), optimizer.accumulation, split)
        updates, opt_state = make_optimizer(rated).update(grads, state.opt_state, trained)
        params = combine(optax.apply_updates(trained, updates), frozen)
        metrics = drawn.metrics(sums, weights, drawn.streams(batch, corruption))
        metrics |= dict(tokens=(batch["segment_ids"] > 0).sum(dtype=jnp.float32))
        metrics |= dict(grad_norm=optax.tree.norm(grads), learning_rate=make_schedule(rated)(state.step))
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def make_eval_step(
    graphdef: nnx.GraphDef,
    objective: Objective,
    numbers: Numbers,
    remat: str = "none",
    teacher: "Teacher | None" = None,
    pieces: int = 1,
) -> Callable:
    """`eval_step(params, batch, index) -> (sums, weights)`, by term; the noise of a batch is always the same.

    A batch that training takes in micro-batches is measured in as many `pieces`: all of it need not fit into memory.
    """

    @jax.jit
    def eval_step(params: dict, batch: Batch, index: jax.Array, numbers: Numbers):
        measured = numbers.objective(objective)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(numbers.seed), _EVALUATION), index)
        corruption = measured.corrupt(example_keys(key, batch["tokens"].shape[0]), batch)
        if teacher:
            corruption = teacher.look(numbers.teacher, params, batch, corruption, pieces)
        sums = lambda piece: measured.sums(nnx.merge(graphdef, params), *piece, remat=remat)  # noqa: E731
        return sum_of_pieces(sums, (batch, corruption), pieces), measured.weights(batch, corruption)

    return functools.partial(eval_step, numbers=numbers)


def _accumulate(total: Callable, trained: dict, rows, count: int, shardings: dict):
    """(gradient of `total` by `trained`, sums) of all rows in `count` micro-batches.

    Each micro-batch's loss is its sums over the GLOBAL weights, hence their gradients add up to the gradient of the
    global mean: nothing is averaged over micro-batches, and ragged ones count by their tokens.
    """

    def grad(rows):
        grads, sums = jax.grad(total, has_aux=True)(trained, *rows)
        return jax.lax.with_sharding_constraint(grads, shardings), sums  # split at once, like the parameters

    if count == 1:
        return grad(rows)
    micro = in_pieces(rows, count)
    shapes = jax.eval_shape(grad, jax.tree.map(lambda x: x[0], micro))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(lambda sums, rows: (jax.tree.map(jnp.add, sums, grad(rows)), None), zeros, micro)[0]
