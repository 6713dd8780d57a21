"""A product of few rows with a matrix that is laid out for it once, and a norm, in C++ behind `jax.ffi`.

Shapes: D summed over, F = all axes of the result, S strips of 32 of them, ... rows. XLA packs the whole matrix anew at
every product of 2 to 64 rows, which costs as much as reading it several times; this one reads it once.

Each sum runs over D in the order of D, so that a row's bits do not depend on the rows beside it. There is no gradient:
decoding asks for none.
"""

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

STRIP = 32  # columns; strips.h has the same number


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packed:
    """A matrix in strips: float32[S, D, 32], or uint16[S, D, 16, 2], bfloat16's bits, where they hold every value.

    Bits, for XLA widens a whole bfloat16 array before it takes anything out of it.
    """

    strips: jax.Array
    out: tuple[int, ...] = field(metadata=dict(static=True))  # the axes of the result that F is made of
    wanted_BT: jax.Array | None = None  # columns that products compute; they leave the others zero (None: all)
    adapter: "Adapter | None" = None  # what the product's last columns are given beside

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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Low:
    """The second matrix of an adapter, [R, F]: of every strip only a run of rows, beside which all are zero.

    That of fused matrices has a block for each of them, and most strips lie in one.
    """

    strips: jax.Array  # float32[S, rows, 32]
    from_S: jax.Array  # the first row of each strip's


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Adapter:
    """(x A) B in the last so many columns of x."""

    a: Packed
    b: Low
    last: int = field(metadata=dict(static=True))


def pack(w: jax.Array, summed: int = 1) -> Packed:
    """Lays out a float32 matrix whose first `summed` axes are D; one that bfloat16 holds takes half the memory."""
    w_DF = w.reshape(math.prod(w.shape[:summed]), -1)
    return Packed(_narrowed(_strips(w_DF)), w.shape[summed:])


def pack_low(b: jax.Array) -> Low:
    """Lays out the second matrix of an adapter, whose first axis is its rank."""
    rank, strips = len(b), _strips(b.reshape(len(b), -1))
    held_SR = np.asarray((strips != 0).any(axis=2))
    first_S, behind_S = held_SR.argmax(axis=1), np.where(held_SR.any(axis=1), rank - held_SR[:, ::-1].argmax(axis=1), 0)
    rows = max(int((behind_S - first_S).max()), 1)
    from_S = np.minimum(first_S, rank - rows)
    runs = jnp.take_along_axis(strips, (from_S[:, None] + np.arange(rows))[..., None], axis=1)
    return Low(_narrowed(runs), jnp.asarray(from_S, jnp.int32))


def product(x: jax.Array, w: Packed) -> jax.Array:
    """float32[..., *w.out]: x w and its adapter's part; those of x [B, T, D] are the last T columns wanted of w."""
    rows, D = x.shape[:-1], x.shape[-1]
    out = jax.ShapeDtypeStruct((math.prod(rows), math.prod(w.out)), jnp.float32)
    if 0 in out.shape:
        return jnp.zeros((*rows, *w.out))
    wanted = jnp.zeros(0, bool) if w.wanted_BT is None else jnp.broadcast_to(w.wanted_BT[:, -x.shape[1] :], rows)
    given = x.reshape(-1, D), w.strips, wanted.reshape(-1)
    if w.adapter is None:
        return jax.ffi.ffi_call("edlm_product_of_rows", out)(*given).reshape(*rows, *w.out)
    a, b, T = w.adapter.a, w.adapter.b, rows[1]
    adapted = np.broadcast_to(np.arange(T) >= T - w.adapter.last, rows).reshape(-1)
    call = jax.ffi.ffi_call("edlm_adapted_product", out)
    return call(*given, adapted, a.strips, b.strips, b.from_S).reshape(*rows, *w.out)


@jax.jit
def _strips(w_DF):
    D, F = w_DF.shape
    S = -(-F // STRIP)
    return jnp.pad(w_DF, ((0, 0), (0, S * STRIP - F))).reshape(D, S, STRIP).transpose(1, 0, 2)


def _narrowed(strips):
    """As bits of bfloat16, where that holds all values: columns c and 16 + c side by side."""
    return _bits(strips) if _is_narrow(strips) else strips


@jax.jit
def _is_narrow(strips):
    return (strips.astype(jnp.bfloat16).astype(jnp.float32) == strips).all()


@jax.jit
def _bits(strips):
    bits = jax.lax.bitcast_convert_type(strips.astype(jnp.bfloat16), jnp.uint16)
    return bits.reshape(*strips.shape[:2], 2, STRIP // 2).swapaxes(2, 3)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scale:
    """The float32 scale of a norm that is to be computed here."""

    values: jax.Array


def rms_norm(x, scale: Scale, eps: float):
    """What models.transformer's is, in float32."""
    out = jax.ShapeDtypeStruct((x.size // x.shape[-1], x.shape[-1]), jnp.float32)
    if 0 in out.shape:
        return x
    return jax.ffi.ffi_call("edlm_norm", out)(x.reshape(out.shape), scale.values, eps=np.float32(eps)).reshape(x.shape)
