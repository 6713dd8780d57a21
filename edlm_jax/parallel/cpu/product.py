"""A product of few rows with a matrix that is laid out for it once, in C++ behind `jax.ffi` (product.cc).

Shapes: D summed over, F = all axes of the result, S strips of 32 of them, ... rows. XLA packs the whole matrix anew at
every product of 2 to 64 rows, which costs as much as reading it several times; this one reads it once.

Each sum runs over D in the order of D, so that a row's bits do not depend on the rows beside it. There is no gradient:
decoding asks for none.
"""

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from edlm_jax.parallel.cpu.library import library

STRIP = 32  # columns; product.cc has the same number


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packed:
    """A matrix in strips: float32[S, D, 32], or bfloat16[S, D, 16, 2] where that holds every value."""

    strips: jax.Array
    shape: tuple[int, ...] = field(metadata=dict(static=True))  # as it was: D and the axes of the result

    @property
    def nbytes(self) -> int:
        """What a product reads."""
        return self.strips.nbytes

    def columns(self, index) -> jax.Array:
        """float32[..., D]: the columns of a matrix [D, F] at so many indices; a tied embedding is read like this."""
        strip, column = index // STRIP, index % STRIP
        if self.strips.ndim == 3:
            return self.strips[strip, :, column]
        half = STRIP // 2
        return self.strips[strip, :, column % half, column // half].astype(jnp.float32)


def pack(w: jax.Array) -> Packed:
    """Lays out float32[D, ...]; one whose values are all bfloat16's stays so, in half the memory."""
    return Packed(_strips(w, bool(_is_narrow(w))), w.shape)


def product(x: jax.Array, w: Packed) -> jax.Array:
    """float32[..., *w.shape[1:]]: the product over the last axis of x and the first of w."""
    rows, (D, *rest) = x.shape[:-1], w.shape
    out = jax.ShapeDtypeStruct((math.prod(rows), math.prod(rest)), jnp.float32)
    if 0 in out.shape:
        return jnp.zeros((*rows, *rest))
    return jax.ffi.ffi_call(library().product, out)(x.reshape(-1, D), w.strips).reshape(*rows, *rest)


@jax.jit
def _is_narrow(w):
    return (w.astype(jnp.bfloat16).astype(jnp.float32) == w).all()


@jax.jit(static_argnames="narrow")
def _strips(w, narrow):
    D = w.shape[0]
    w_DF = w.reshape(D, -1)
    S = -(-w_DF.shape[1] // STRIP)
    w_DF = jnp.pad(w_DF, ((0, 0), (0, S * STRIP - w_DF.shape[1])))
    if narrow:  # columns c and 16 + c of a strip side by side
        return w_DF.astype(jnp.bfloat16).reshape(D, S, 2, STRIP // 2).transpose(1, 0, 3, 2)
    return w_DF.reshape(D, S, STRIP).transpose(1, 0, 2)
