"""Where activations meet a model's parameters: in the activations' dtype, with float32 sums in the parameters' gradients.

A parameter's gradient is a sum over all tokens of a batch. In bfloat16 a sum stops growing at 256 times what is added,
and one that is rounded when it is done, or summed over devices after that, has lost what AdamW's float32 moments are
for. Hence parameters come here as they are stored and are rounded here, tensor by tensor, and never before.
"""

from functools import partial

import jax
import jax.numpy as jnp

from edlm_jax.parallel.devices import platform


def product(subscripts: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """einsum(x, w) in the dtype of x; the gradient of w is that of w's own dtype, its sum over tokens float32."""
    widens = w.ndim == 2 and w.shape[1] > w.shape[0]
    if w.dtype == x.dtype and not (widens and platform() == "cpu"):
        return jnp.einsum(subscripts, x, w)
    return _product(subscripts, x, w)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(subscripts, x, w):
    return jnp.einsum(subscripts, x, w.astype(x.dtype))


def _forward(subscripts, x, w):
    return _product(subscripts, x, w), (x, w)


def _backward(subscripts, residuals, g):
    (x, w), (operands, out) = residuals, subscripts.split("->")
    of_x, of_w = operands.split(",")
    dx = jnp.einsum(f"{out},{of_w}->{of_x}", g, w.astype(x.dtype))
    # On CPU the left operand is transposed in memory: not the wide one, with all the elementwise work fused into the
    # copy (a third of the step, measured).
    (left, of_left), (right, of_right) = sorted([(g, out), (x, of_x)], key=lambda pair: pair[0].size)
    dw = jnp.einsum(f"{of_left},{of_right}->{of_w}", left, right, preferred_element_type=jnp.float32)
    return dx, dw.astype(w.dtype)


_product.defvjp(_forward, _backward)


def rounded(w: jax.Array, dtype) -> jax.Array:
    """float32, with the values that w has in `dtype`: for the few operations on scales and biases, which round after.

    The rounding has derivative one, where a cast would round the gradient, too.
    """
    wide = w.astype(jnp.float32)
    if w.dtype == dtype or dtype == jnp.float32:
        return wide
    return wide + jax.lax.stop_gradient(w.astype(dtype).astype(jnp.float32) - wide)
