"""Does the GPU that is here take our kernels? Where not, tiles of plain JAX compute the same."""

import functools
import warnings

import jax
import jax.numpy as jnp

from edlm_jax.attention import triton
from edlm_jax.attention.pattern import Tiles
from edlm_jax.parallel.devices import platform


@functools.cache
def refusal(tiles: Tiles | None = None) -> str:
    """Why it takes no kernels in these tiles, in a line that is also a warning; "" where it does.

    Asked by compiling, forward and backward, one tile in bfloat16 with heads of 128. Devices that are not here are not
    asked: what their compiler refuses, `edlm compile` says.
    """
    if jax.default_backend() != "gpu":
        return ""
    tiles = triton.checked(tiles)
    T, S = tiles
    q_BTNH, k_BSKH = (jax.ShapeDtypeStruct((1, size, 1, 128), jnp.bfloat16) for size in tiles)

    def total(q_BTNH, k_BSKH, v_BSKH):
        documents = (jnp.ones((1, size), jnp.int32) for size in tiles)
        plan = triton.plan_visits(jnp.zeros((1, 4, T), jnp.int32), *documents, tiles)
        return triton.attend_visits(tiles, False, q_BTNH, k_BSKH, v_BSKH, plan).astype(jnp.float32).sum()

    try:
        jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(q_BTNH, k_BSKH, k_BSKH).compile()
    except Exception as error:  # of many kinds: of lowering, of Triton, of ptxas
        reason = " ".join(str(error).split())[:300]
        what = f"this GPU takes no attention kernels in tiles of {T} x {S}; tiles of plain JAX, exact and slower,"
        warnings.warn(f"{what} take their place: {reason}", stacklevel=2)
        return reason
    return ""


def kernels_for(tiles: Tiles | None) -> str:
    """Whose kernels compute what is traced: "tpu", "gpu", or "" for plain JAX."""
    target = platform()
    return target if target == "tpu" or target == "gpu" and not refusal(tiles) else ""
