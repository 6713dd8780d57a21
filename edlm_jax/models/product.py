"""A product whose gradient compilers do better when told how."""

import jax
import jax.numpy as jnp


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
