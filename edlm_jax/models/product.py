"""Where activations meet a model's parameters: in the dtype of the activations, with float32 sums in the gradients.

A parameter's gradient is a sum over all tokens of a batch. A bfloat16 sum stops growing at 256 times what is added, and
one that is rounded when a device has done its part loses what float32 moments are kept for. Hence parameters come here
as they are stored and are rounded here, each for itself, and never before.
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
    """x_BTD, rounded after it is gathered: the table's gradient sums what a token's every place sends back in float32.

    Where a mesh splits the width, only tokens and then activations go from device to device: neither the table nor its
    gradient is whole anywhere.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not dividing(mesh, TRAINING.D, table_VD.shape[1]):
        return constrain(table_VD[tokens_BT].astype(dtype), "BL_")
    tokens_BT = constrain(tokens_BT, "BL", _BY_WIDTH)
    return constrain(constrain(table_VD[tokens_BT].astype(dtype), "BLD", _BY_WIDTH), "BL_")


def project(x: jax.Array, w: jax.Array | cpu.Packed, summed: int = 1, dtype=None) -> jax.Array:
    """x W over the last `summed` axes of x and the first of w, which decoding may have packed for its machine."""
    kept = x.ndim - summed
    x = x.reshape(*x.shape[:kept], math.prod(x.shape[kept:]))
    if isinstance(w, cpu.Packed):
        return cpu.product(x, w)
    w = w.reshape(-1, *w.shape[summed:])  # flat, or the CPU compiler transposes it on every call
    rows, columns = "ABC"[:kept], "XYZ"[: w.ndim - 1]
    return product(f"{rows}I,I{columns}->{rows}{columns}", x, w, dtype)


def product(subscripts: str, x: jax.Array, w: jax.Array, out_dtype=None) -> jax.Array:
    """einsum(x, w) in the dtype of x; the gradient of w is summed over tokens in float32 and has w's own dtype.

    `out_dtype` is that of the result, by default that of x.
    """
    out_dtype = jnp.dtype(out_dtype or x.dtype)
    widens = w.ndim == 2 and w.shape[1] > w.shape[0]
    if w.dtype == x.dtype and not (widens and platform() == "cpu"):
        return jnp.einsum(subscripts, x, w, preferred_element_type=out_dtype)
    return _product(subscripts, out_dtype, x, w)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(subscripts, out_dtype, x, w):
    return jnp.einsum(subscripts, x, w.astype(x.dtype), preferred_element_type=out_dtype)


def _forward(subscripts, out_dtype, x, w):
    return _product(subscripts, out_dtype, x, w), (x, w)


def _backward(subscripts, _, residuals, g):
    (x, w), (operands, out) = residuals, subscripts.split("->")
    of_x, of_w = operands.split(",")
    dx = jnp.einsum(f"{out},{of_w}->{of_x}", g, w.astype(x.dtype)).astype(x.dtype)
    # On CPU the left operand is transposed in memory: not the wide one, with all the elementwise work fused into the
    # copy (a third of the step, measured).
    (left, of_left), (right, of_right) = sorted([(g, out), (x, of_x)], key=lambda pair: pair[0].size)
    dw = jnp.einsum(f"{of_left},{of_right}->{of_w}", left, right, preferred_element_type=jnp.float32)
    return dx, dw.astype(w.dtype)


_product.defvjp(_forward, _backward)


def rounded(w: jax.Array, dtype) -> jax.Array:
    """float32, with the values that w has in `dtype`: for scales and biases, whose operations round after.

    The rounding has derivative one; that of a cast would round the gradient, too.
    """
    wide = w.astype(jnp.float32)
    if w.dtype == dtype or dtype == jnp.float32:
        return wide
    return wide + jax.lax.stop_gradient(w.astype(dtype).astype(jnp.float32) - wide)
