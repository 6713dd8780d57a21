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
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from edlm_jax.errors import InputError
from edlm_jax.models.transformer import Transformer
from edlm_jax.training.objective import Batch, Corruption, Objective, example_keys

WAYS = ("per sequence", "per block", "stratified", "two views", "complementary")
_LOW = 1e-3  # the least noise level, and the least distance from 1


def gradient_variance(
    model: Transformer,
    objective: Objective,
    batch: Batch,
    draws: int,
    on_way: Callable[[str], None] = lambda way: None,
) -> dict[str, dict[str, Any]]:
    """{way: {"relative": variance over all weights / squared norm of the mean gradient, "columns": of a row, in L}}.

    A mean gradient is held for each way; `on_way` hears of each that is finished.
    """
    if draws < 2:
        raise InputError(f"a variance needs at least two draws, not {draws}")
    if not ((batch["loss_mask"] > 0) & (batch["segment_ids"] > 0)).any():
        raise InputError("the batch has no token that carries loss")
    graphdef, params = nnx.split(model)
    ways, moments, length = ways_of(objective), [], batch["tokens"].shape[1]
    for way in ways:
        noise = _draws(draws, batch, objective, way)
        # What is compiled knows the number of views, not the way: two programs for five ways.
        widened = dataclasses.replace(objective, noisy_length=views(way) * length if views(way) > 1 else 0)
        moments.append(jax.block_until_ready(_moments(graphdef, params, widened, batch, noise)))
        on_way(way)
    variances, signal = jax.device_get(_compare(moments, draws))
    return {
        way: {
            "relative": float(variance / signal) if signal > 0 else None,  # too few draws to see the gradient
            "columns": views(way) + objective.two_streams,
        }
        for way, variance in zip(ways, variances, strict=True)
    }


def ways_of(objective: Objective) -> tuple[str, ...]:
    """Those that it allows: two views need a clean stream to share."""
    return WAYS if objective.two_streams else WAYS[:3]


def views(way: str) -> int:
    """Noisy copies of each block."""
    return 1 + (way in ("two views", "complementary"))


def draw(key: jax.Array, batch: Batch, objective: Objective, way: str) -> Corruption:
    """The noisy stream of one draw."""
    tokens_BL = jnp.asarray(batch["tokens"])
    B, L = tokens_BL.shape
    corruptible_BL = (batch["loss_mask"] > 0) & (batch["segment_ids"] > 0)
    row = functools.partial(_draw_row, C=objective.block_length, way=way)
    masked_BM, level_BM = jax.vmap(row)(example_keys(key, B), corruptible_BL)
    copies_BM = jnp.broadcast_to(jnp.tile(jnp.arange(L), views(way)), masked_BM.shape)
    noisy_BM = jnp.where(masked_BM, objective.mask_id, jnp.take_along_axis(tokens_BL, copies_BM, axis=1))
    return Corruption(noisy_BM, masked_BM, level_BM, copies_BM if views(way) > 1 else None)


def _draw_row(key, corruptible_L, C: int, way: str):
    """(masked_M, level_M) of a row: M = L for one view, 2 L for two."""
    L = corruptible_L.shape[0]
    level_key, mask_key, other_key = jax.random.split(key, 3)
    shape = (1,) if way == "per sequence" else (L // C,)
    u_N = jax.random.uniform(level_key, shape)
    if way == "stratified":
        useful_N = corruptible_L.reshape(-1, C).any(axis=1)
        order_N = jnp.where(useful_N, jax.random.uniform(other_key, useful_N.shape), 2.0)
        u_N = jnp.where(useful_N, (jnp.argsort(jnp.argsort(order_N)) + u_N) / jnp.maximum(useful_N.sum(), 1), u_N)
    level_L = jnp.repeat(_LOW + (1 - 2 * _LOW) * u_N, L // u_N.shape[0])
    hit_L = jax.random.uniform(mask_key, (L,)) < level_L
    if views(way) == 1:
        return hit_L & corruptible_L, level_L
    if way == "complementary":
        other_hit_L, other_level_L = ~hit_L, 1 - level_L
        both = jnp.concatenate([hit_L & corruptible_L, other_hit_L & corruptible_L])
        return both, jnp.concatenate([level_L, other_level_L])
    pair = [_draw_row(half, corruptible_L, C, "per block") for half in (mask_key, other_key)]
    return tuple(jnp.concatenate(parts) for parts in zip(*pair, strict=True))


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def _draws(count: int, batch: Batch, objective: Objective, way: str) -> Corruption:
    """The noise of draws 0..count - 1, one behind the other; ways do not share any, as `_compare` takes for granted."""
    key = jax.random.fold_in(jax.random.key(0), WAYS.index(way))
    return jax.vmap(lambda key: draw(key, batch, objective, way))(jax.random.split(key, count))


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
    learnable_BM = corruption.copied((batch["loss_mask"] > 0) & (batch["segment_ids"] > 0))
    count = objective.predicted(batch, corruption._replace(masked_BM=learnable_BM)).sum(dtype=jnp.float32)
    return objective.sums(nnx.merge(graphdef, params), batch, corruption).diffusion / count


@functools.partial(jax.jit, static_argnames="draws")
def _compare(moments, draws: int):
    """(variance of each way, squared norm of the mean gradient)."""
    variances = [(squares - draws * _square(mean)) / (draws - 1) for mean, squares in moments]
    pooled = jax.tree.map(lambda *means: sum(means) / len(means), *(mean for mean, _ in moments))
    # The pooled mean has noise of its own, of which its squared norm is too large by so much.
    return variances, _square(pooled) - sum(variances) / draws / len(moments) ** 2


def _square(tree) -> jax.Array:
    return sum(jnp.vdot(x, x) for x in jax.tree.leaves(tree))
