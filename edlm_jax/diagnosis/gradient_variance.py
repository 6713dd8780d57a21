"""How noisy the gradient is by the way noise levels are drawn, on one fixed batch.

    per sequence      one t for a row
    per block         one t for each block
    stratified        one t for each block, one from each N-th part of the interval, in random order
    two views         two noisy copies of each block beside one clean stream, drawn by themselves
    complementary     the same, but the second masks what the first shows, at 1 - t

Masks are independent at probability t and the loss is the sum of ce / t over the number of learnable tokens and views,
so that every way has the same expected gradient and variances compare. Positions of the masks play no part here.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from edlm_jax.diffusion.masks import EPSILON, Complementary, rank
from edlm_jax.diffusion.noise import Corruption, Noise, example_keys
from edlm_jax.diffusion.streams import Batch, learnable
from edlm_jax.diffusion.terms import MaskedTokens
from edlm_jax.errors import InputError
from edlm_jax.models.transformer import Transformer
from edlm_jax.training.objective import Objective


def per_block(key, _, useful_N):
    """float32[N]: a level of noise for each block of a row."""
    return jax.random.uniform(key, useful_N.shape)


def per_row(key, _, useful_N):
    """float32[1]: one for all of its blocks."""
    return jax.random.uniform(key, (1,))


def stratified(key, order_key, useful_N):
    """float32[N]: one from each of as many equal parts of [0, 1) as the row has blocks with a loss, in random order."""
    u_N = jax.random.uniform(key, useful_N.shape)
    order_N = jnp.where(useful_N, jax.random.uniform(order_key, useful_N.shape), 2.0)
    return jnp.where(useful_N, (rank(order_N) + u_N) / jnp.maximum(useful_N.sum(), 1), u_N)


@dataclass(frozen=True)
class Independent(Noise):
    """Every position by itself at probability t: what the ways to draw levels are compared by.

    Levels keep their distance from both ends, so that 1 - t is a level too.
    """

    levels: Callable[..., jax.Array] = per_block  # in (0, 1), of blocks of which some hold nothing to hide

    def hide(self, key, corruptible_L, block_length):
        level_key, mask_key, order_key = jax.random.split(key, 3)
        u_X = self.levels(level_key, order_key, corruptible_L.reshape(-1, block_length).any(axis=1))
        level_L = jnp.repeat(EPSILON + (1 - 2 * EPSILON) * u_X, len(corruptible_L) // len(u_X))
        return (jax.random.uniform(mask_key, corruptible_L.shape) < level_L) & corruptible_L, level_L


@dataclass(frozen=True)
class TwoViews(Independent):
    """Two copies of each block, each with noise of its own."""

    views = 2

    def hide(self, key, corruptible_L, block_length):
        draw = Independent(self.mask_id).hide
        halves = [draw(half, corruptible_L, block_length) for half in jax.random.split(key, 3)[1:]]
        return tuple(jnp.concatenate(parts) for parts in zip(*halves, strict=True))


WAYS: dict[str, Callable[[int], Noise]] = {
    "per sequence": lambda mask_id: Independent(mask_id, per_row),
    "per block": Independent,
    "stratified": lambda mask_id: Independent(mask_id, stratified),
    "two views": TwoViews,
    "complementary": lambda mask_id: Complementary(mask_id, Independent(mask_id)),
}


def gradient_variance(
    model: Transformer, objective: Objective, batch: Batch, draws: int, on_way: Callable[[str], None] = lambda way: None
) -> dict[str, dict[str, Any]]:
    """{way: {"relative": variance over all weights / squared norm of the mean gradient, "columns": of a row, in L}}.

    Of two `draws` or more; a mean gradient is held for each way. `on_way` hears of each that is finished.
    """
    if not learnable(batch).any():
        raise InputError("the batch has no token that carries loss")
    graphdef, params = nnx.split(model)
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)  # gradients and their sums have the dtype of these
    ways, moments = ways_of(objective), []
    objectives = {way: under(objective, way) for way in ways}
    for index, way in enumerate(ways):
        noise = _draws(draws, index, batch, objectives[way])
        # What is compiled knows the number of views, not the way: two programs for five ways.
        learned = dataclasses.replace(objectives[way], noise=None)
        moments.append(jax.block_until_ready(_moments(graphdef, params, learned, batch, noise)))
        on_way(way)
    variances, signal = jax.device_get(_compare(moments, draws))
    return {
        way: {
            "relative": float(variance / signal) if signal > 0 else None,  # too few draws to see the gradient
            "columns": objectives[way].layout.columns(1),
        }
        for way, variance in zip(ways, variances, strict=True)
    }


def ways_of(objective: Objective) -> list[str]:
    """Those that it allows: two views need a clean stream to share."""
    return [way for way, noise in WAYS.items() if objective.layout.two_streams or noise(0).views == 1]


def under(objective: Objective, way: str) -> Objective:
    """The diffusion loss under noise that is drawn in a way."""
    layout, noise = dataclasses.replace(objective.layout, noisy_length=0), WAYS[way](objective.noise.mask_id)
    return Objective(layout, None, (MaskedTokens(),)).under(noise)


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def _draws(count: int, way: int, batch: Batch, objective: Objective) -> Corruption:
    """The noise of draws 0..count - 1, one behind the other; ways do not share any, as `_compare` takes for granted."""
    rows, key = len(batch["tokens"]), jax.random.fold_in(jax.random.key(0), way)
    draw = lambda key: objective.corrupt(example_keys(key, rows), batch)  # noqa: E731
    return jax.vmap(draw)(jax.random.split(key, count))


@functools.partial(jax.jit, static_argnums=(0, 2))
def _moments(graphdef, params, objective: Objective, batch: Batch, noise: Corruption):
    """(mean gradient, sum of the gradients' squared norms) over the draws of `noise`."""
    draws = len(noise.masked_BM)

    def body(carry, corruption):
        gradient = jax.grad(_loss)(params, graphdef, objective, batch, corruption)
        mean, squares = carry
        return (jax.tree.map(lambda m, g: m + g / draws, mean, gradient), squares + _square(gradient)), None

    return jax.lax.scan(body, (jax.tree.map(jnp.zeros_like, params), 0.0), noise)[0]


def _loss(params, graphdef, objective: Objective, batch: Batch, corruption: Corruption):
    streams = objective.streams(batch, corruption)
    count = streams.predicted(corruption.copied(learnable(batch))).sum(dtype=jnp.float32)
    return objective.sums(nnx.merge(graphdef, params), batch, corruption)["diffusion"]["loss"] / count


@functools.partial(jax.jit, static_argnames="draws")
def _compare(moments, draws: int):
    """(variance of each way, squared norm of the mean gradient)."""
    variances = [(squares - draws * _square(mean)) / (draws - 1) for mean, squares in moments]
    pooled = jax.tree.map(lambda *means: sum(means) / len(means), *(mean for mean, _ in moments))
    # The pooled mean has noise of its own, of which its squared norm is too large by so much.
    return variances, _square(pooled) - sum(variances) / draws / len(moments) ** 2


def _square(tree) -> jax.Array:
    return sum(jnp.vdot(x, x) for x in jax.tree.leaves(tree))
