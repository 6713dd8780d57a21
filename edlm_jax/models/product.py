"""Products with a layer's matrices: as they lie, and with a gradient that compilers do better when told how."""

import math

import jax
import jax.numpy as jnp

from edlm_jax.parallel import cpu


def project(x, w, summed: int = 1, dtype=None):
    """x W over the last `summed` axes of x and the first of w, which decoding may have packed for its machine."""
    kept = x.ndim - summed
    x = x.reshape(*x.shape[:kept], math.prod(x.shape[kept:]))
    if isinstance(w, cpu.Packed):
        return cpu.product(x, w)
    w = w.reshape(-1, *w.shape[summed:])  # flat, or the CPU compiler transposes it on every call
    return jnp.tensordot(x, w, 1, preferred_element_type=dtype)


@jax.custom_vjp
def widen(h_BTD, w_DF):
    """h @ w whose weight gradient is h^T g, not (g^T h)^T as autodiff has it.

    On CPU the left operand is transposed in memory: not the wide one, with all the elementwise work fused into the copy
    (a third of the step, measured).
    """
    return jnp.einsum("BTD,DF->BTF", h_BTD, w_DF)


def _widen_backward(residuals, g_BTF):
    h_BTD, w_DF = residuals
    return jnp.einsum("BTF,DF->BTD", g_BTF, w_DF), jnp.einsum("BTD,BTF->DF", h_BTD, g_BTF)


widen.defvjp(lambda h_BTD, w_DF: (widen(h_BTD, w_DF), (h_BTD, w_DF)), _widen_backward)
