"""Where activations meet a model's parameters: in the activations' dtype, and with sums over tokens in float32.

A parameter's gradient is a sum over all tokens of a batch. A bfloat16 sum stops growing at 256 times what is added, and
one that is rounded when a device has done its part loses what float32 moments are kept for. Hence parameters come here
as they are stored and are rounded here, each for itself, and never before. What stays rounded to the dtype of the
activations is what each token has to say, on its way back as on its way there.
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp

from edlm_jax.parallel import cpu
from edlm_jax.parallel.devices import platform
from edlm_jax.parallel.sharding import TRAINING, constrain, dividing

# Of a lookup: devices that share out the width look up all rows that any of them holds.
_BY_WIDTH = dataclasses.replace(TRAINING, B=tuple(axis for axis in TRAINING.B if axis not in TRAINING.D))


def look_up(table_VD: jax.Array, tokens_BT: jax.Array, dtype) -> jax.Array:
    """x_BTD, rounded after it is gathered, so that what all places of a token send back is added up in float32.

    Where a mesh splits the width, only tokens and then activations go from device to device: neither the table nor its
    gradient is whole anywhere.
    """
    if not dividing(jax.sharding.get_abstract_mesh(), TRAINING.D, table_VD.shape[1]):
        return constrain(table_VD[tokens_BT].astype(dtype), "BL_")
    tokens_BT = constrain(tokens_BT, "BL", _BY_WIDTH)
    return constrain(constrain(table_VD[tokens_BT].astype(dtype), "BLD", _BY_WIDTH), "BL_")


def project(x, w, summed: int = 1, dtype=None):
    """x W over the last `summed` axes of x and the first of w, which decoding may have packed for its machine.

    It is computed in the dtype of x and has that `dtype`, or the same. The gradient of w is summed in float32.
    """
    kept = x.ndim - summed
    x = x.reshape(*x.shape[:kept], math.prod(x.shape[kept:]))
    if isinstance(w, cpu.Packed):
        return cpu.product(x, w)
    w = w.reshape(-1, *w.shape[summed:])  # flat, or the CPU compiler transposes it on every call
    widens_on_cpu = w.ndim == 2 and w.shape[1] > w.shape[0] and platform() == "cpu"
    return (_project if w.dtype != x.dtype or widens_on_cpu else _plain)(x, w, dtype)


def _plain(x, w, dtype):
    return jnp.tensordot(x, w.astype(x.dtype), 1, preferred_element_type=dtype)


_project = jax.custom_vjp(_plain, nondiff_argnums=(2,))


def _project_backward(_, residuals, g):
    x, w = residuals
    tokens, out = tuple(range(x.ndim - 1)), w.ndim - 1
    dx = jnp.tensordot(g, w.astype(x.dtype), (tuple(range(-out, 0)), tuple(range(1, w.ndim)))).astype(x.dtype)
    if platform() == "cpu":  # XLA knows no product there that is float32 of others, but for some layouts
        x, g = x.astype(jnp.float32), g.astype(jnp.float32)
    sum_over_tokens = partial(jnp.tensordot, axes=(tokens, tokens), preferred_element_type=jnp.float32)
    # On CPU the left operand is transposed in memory: not the wide one, with all the elementwise work fused into the
    # copy (a third of the step, measured).
    dw = sum_over_tokens(x, g) if x.size < g.size else jnp.moveaxis(sum_over_tokens(g, x), -1, 0)
    return dx, dw.astype(w.dtype)


_project.defvjp(lambda x, w, dtype: (_plain(x, w, dtype), (x, w)), _project_backward)


def rounded(w: jax.Array, dtype) -> jax.Array:
    """float32, with the values that w has in `dtype`: of scales and biases, whose operations are rounded afterwards.

    The rounding has derivative one; that of a cast would round the gradient, too.
    """
    wide = w.astype(jnp.float32)
    if w.dtype == dtype or dtype == jnp.float32:
        return wide
    return wide + jax.lax.stop_gradient(w.astype(dtype).astype(jnp.float32) - wide)
