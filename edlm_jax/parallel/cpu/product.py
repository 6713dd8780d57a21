"""A product of few rows with a matrix that is laid out for it once, in C++ behind `jax.ffi` (product.cc).

Shapes: D summed over, F = all axes of the result, S strips of 32 of them, ... rows. XLA packs the whole matrix anew at
every product of 2 to 64 rows, which costs as much as reading it several times; this one reads it once.

Each sum runs over D in the order of D, so that a row's bits do not depend on the rows beside it. There is no gradient:
decoding asks for none.
"""

import math
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp

STRIP = 32  # columns; product.cc has the same number


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packed:
    """A matrix in strips: float32[S, D, 32], or uint16[S, D, 16, 2], bfloat16's bits, where they hold every value.

    Bits, for XLA widens a whole bfloat16 array before it takes anything out of it.
    """

    strips: jax.Array
    out: tuple[int, ...] = field(metadata=dict(static=True))  # the axes of the result that F is made of
    wanted_BT: jax.Array | None = None  # columns that products compute; they leave the others zero (None: all)

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
        wide = self.strips[strip, :, column % half, column // half].astype(jnp.uint32) << 16
        return jax.lax.bitcast_convert_type(wide, jnp.float32)


def pack(w: jax.Array, summed: int = 1) -> Packed:
    """Lays out a float32 matrix whose first `summed` axes are D; one that bfloat16 holds takes half the memory."""
    w_DF = w.reshape(math.prod(w.shape[:summed]), -1)
    return Packed(_strips(w_DF, bool(_is_narrow(w_DF))), w.shape[summed:])


def product(x: jax.Array, w: Packed) -> jax.Array:
    """float32[..., *w.out]: the product over the last axis of x, of x [B, T, D] over the last T columns wanted of w."""
    rows, D = x.shape[:-1], x.shape[-1]
    out = jax.ShapeDtypeStruct((math.prod(rows), math.prod(w.out)), jnp.float32)
    if 0 in out.shape:
        return jnp.zeros((*rows, *w.out))
    wanted = jnp.zeros(0, bool) if w.wanted_BT is None else jnp.broadcast_to(w.wanted_BT[:, -x.shape[1] :], rows)
    call = jax.ffi.ffi_call("edlm_product_of_rows", out)
    return call(x.reshape(-1, D), w.strips, wanted.reshape(-1)).reshape(*rows, *w.out)


@jax.jit
def _is_narrow(w_DF):
    return (w_DF.astype(jnp.bfloat16).astype(jnp.float32) == w_DF).all()


@partial(jax.jit, static_argnames="narrow")
def _strips(w_DF, narrow):
    D, F = w_DF.shape
    S = -(-F // STRIP)
    w_DF = jnp.pad(w_DF, ((0, 0), (0, S * STRIP - F)))
    if narrow:  # columns c and 16 + c of a strip side by side
        bits_DF = jax.lax.bitcast_convert_type(w_DF.astype(jnp.bfloat16), jnp.uint16)
        return bits_DF.reshape(D, S, 2, STRIP // 2).transpose(1, 0, 3, 2)
    return w_DF.reshape(D, S, STRIP).transpose(1, 0, 2)
