"""Losses of single columns from hidden states, a chunk of them at a time: no [tokens, vocabulary] logits ever exist.

Each row's wanted columns are put first, and chunks that hold none are never computed: about half of the positions of a
diffusion step have no loss. The backward pass computes a chunk's logits again. Chunks are of columns alone: the
vocabulary is never cut except by the mesh, so none is odd. What is computed from a chunk's logits is a `ColumnLoss`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from edlm_jax.models.column_losses import ColumnLoss, Scores
from edlm_jax.parallel.sharding import TRAINING, dividing, on_each_device

# An eighth of a row: small enough to skip most of what has no loss, large enough to keep the matrix unit busy.
_CHUNKS, _MOST_COLUMNS = 8, 512
_MOST_TOKENS = 2048  # of all rows: at a vocabulary of 151,936 their float32 logits take 1.2 GB
_ROWS = 256  # of a product with a head that is not trained: on CPU 48 took twice the time a column (measured)


def column_loss(
    loss: ColumnLoss,
    x_BTD: Float[Array, "B T D"],
    head_DV: Float[Array, "D V"],
    wanted_BT: Bool[Array, "B T"],
    *,
    targets_BT: Int[Array, "B T"] | Int[Array, "B T K"] | None = None,
    teacher_BTD: Float[Array, "B T D"] | Float[Array, "B T K"] | None = None,
    frozen: bool = False,
) -> tuple[Float[Array, "B T"], ...]:
    """float32 values of the logits x @ head where they are wanted, 0 elsewhere; differentiable in x and head.

    Of a `frozen` head no gradient is asked: that of x is then worked out beside the values, and no logits twice.

    The logits of a teacher are those of the same head, and a constant; beside K targets a column the teacher is their
    shares. Products are in the dtype of x with float32 sums; the head's gradient is summed in float32, whatever x is.

    On a mesh each device does its own rows and columns, with its share of the vocabulary. The head is gathered once
    and its gradient is scattered once, not once per chunk.
    """
    given, axes = (x_BTD, teacher_BTD, targets_BT), _Axes.of(x_BTD, head_DV)
    return _column_loss(loss, frozen, axes, head_DV, given, wanted_BT)


def best_tokens(
    x_BTD: Float[Array, "B T D"], head_DV: Float[Array, "D V"], wanted_BT: Bool[Array, "B T"], count: int
) -> tuple[Float[Array, "B T K"], Int[Array, "B T K"]]:
    """The `count` largest logits of x @ head, and whose they are, where they are wanted; the same way."""
    best, axes = lambda scores, _: scores.best(scores.logits_BCV, count), _Axes.of(x_BTD, head_DV)
    return axes.run(partial(_found, best, axes, 1))(head_DV, (x_BTD, None, None), wanted_BT)


class _Axes(NamedTuple):
    """Mesh axes that split rows, columns, the width of the head and its vocabulary; () where nothing does."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    width: tuple[str, ...]
    vocabulary: tuple[str, ...]

    @classmethod
    def of(cls, x_BTD, head_DV):
        split = partial(dividing, jax.sharding.get_abstract_mesh())
        rows, columns = split(TRAINING.B, x_BTD.shape[0]), split(TRAINING.L, x_BTD.shape[1])
        # A head split over devices that hold the same rows would need its gradient sliced, not summed.
        width = split(TRAINING.D, head_DV.shape[0]) if rows else ()
        return cls(rows, columns, width, split(TRAINING.V, head_DV.shape[1]))

    def run(self, function, slope: bool = False):
        """`function(head_DV, arrays, wanted_BT)` on each device's part -> columns' arrays, after the head's `slope`."""
        of_head, of_columns = PartitionSpec(self.width, self.vocabulary), PartitionSpec(self.rows, self.columns)
        found = (of_head, of_columns) if slope else of_columns
        return on_each_device(function, (of_head, of_columns, of_columns), found)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _column_loss(loss, frozen, axes, head_DV, given, wanted_BT):
    return _forward(loss, False, axes, head_DV, given, wanted_BT)[0]


def _forward(loss, frozen, axes, head_DV, given, wanted_BT):
    find = partial(_values_and_slopes, loss) if frozen else lambda scores, _: loss.value(scores)
    values, kept = axes.run(partial(_found, find, axes, _ROWS if frozen else 1))(head_DV, given, wanted_BT)
    where_wanted = lambda x_BTX: jnp.where(wanted_BT[..., None], x_BTX, 0)  # noqa: E731
    values = tuple(where_wanted(value_BT1)[..., 0] for value_BT1 in values)
    return values, tuple(map(where_wanted, kept)) if frozen else (head_DV, given, kept, wanted_BT)


def _backward(loss, frozen, axes, kept, gradients):
    if frozen:
        parts = [g_BT[..., None] * slope_BTD for g_BT, slope_BTD in zip(gradients, kept, strict=True)]
        return None, (sum(parts).astype(kept[0].dtype), None, None), None
    head_DV, given, stats, wanted_BT = kept
    gradients = [jnp.where(wanted_BT, g_BT, 0)[..., None] for g_BT in gradients]
    local = axes.run(partial(_slopes, loss, axes), slope=True)
    dhead_DV, dx_BTD = local(head_DV, (given, stats, gradients), wanted_BT)
    return dhead_DV, (dx_BTD, None, None), None


_column_loss.defvjp(_forward, _backward)


def _found(find, axes, fewest, head_DV, given, wanted_BT):
    """`find(scores, head_DV)` of all chunks; what it gives of columns that are not wanted means nothing."""
    head_DV = _gather(head_DV, given[0].dtype, axes)
    found = lambda _, *chunk: (None, find(_scores(*chunk, head_DV, axes), head_DV))  # noqa: E731
    return _scan_chunks(found, None, given, wanted_BT, axes, fewest)[1]


def _values_and_slopes(loss, scores, head_DV):
    """(values, of each its gradient by x)"""
    values, stats = loss.value(scores)
    slopes = [loss.slope(scores, stats, tuple(which)) for which in np.eye(len(values), dtype=np.float32)]
    return values, tuple(_slope_of_x(d_BCV, head_DV, scores.vocabulary) for d_BCV in slopes)


def _slopes(loss, axes, head_DV, columns, wanted_BT):
    """(gradient of this device's part of the head, gradient of x)"""
    whole_DV = _gather(head_DV, columns[0][0].dtype, axes)

    def chunk(sum_DV, given, stats, gradients):
        scores = _scores(*given, whole_DV, axes)
        d_BCV = loss.slope(scores, stats, gradients).astype(whole_DV.dtype)
        dhead_DV = jnp.einsum("BCD,BCV->DV", given[0], d_BCV, preferred_element_type=jnp.float32)
        return sum_DV + dhead_DV, _slope_of_x(d_BCV, whole_DV, axes.vocabulary)

    zeros_DV = jnp.zeros(whole_DV.shape, jnp.float32)
    dhead_DV, dx_BTD = _scan_chunks(chunk, zeros_DV, columns, wanted_BT, axes)
    summed = tuple(axis for axis in axes.rows + axes.columns if axis not in axes.width)
    if axes.width:
        dhead_DV = jax.lax.psum_scatter(dhead_DV, axes.width, scatter_dimension=0, tiled=True)
    return jax.lax.psum(dhead_DV, summed).astype(head_DV.dtype), dx_BTD


def _slope_of_x(d_BCV, head_DV, vocabulary):
    d_BCV = d_BCV.astype(head_DV.dtype)
    dx_BCD = jnp.einsum("BCV,DV->BCD", d_BCV, head_DV, preferred_element_type=jnp.float32)
    return jax.lax.psum(dx_BCD, vocabulary).astype(head_DV.dtype)


def _scan_chunks(function, carry, arrays, wanted_BT, axes, fewest: int = 1):
    """As `jax.lax.scan`: (carry, what `function(carry, *chunk of arrays) -> (carry, found)` finds of each column).

    Wanted columns are taken first, and only chunks that hold any; of what is left out 0 is found. All rows of a chunk
    together have `fewest` columns at least, where there are as many.
    """
    B, T = wanted_BT.shape
    most = min(_MOST_COLUMNS, max(_MOST_TOKENS // B, 1))
    C = min(max(-(-T // _CHUNKS), min(-(-fewest // B), T)), most)
    before_BT = jnp.cumsum(wanted_BT, axis=1)  # wanted ones up to here
    others_BT = before_BT[:, -1:] + jnp.arange(T)[None] - before_BT
    order_BT, back_BT = jnp.argsort(~wanted_BT, axis=1, stable=True), jnp.where(wanted_BT, before_BT - 1, others_BT)
    wanted = jax.lax.pmax(before_BT[:, -1].max(), axes.rows + axes.columns)  # devices keep step

    def take(x, order_BT):
        return jnp.take_along_axis(x, order_BT if x.ndim == 2 else order_BT[..., None], axis=1)

    whole = lambda x: jnp.pad(take(x, order_BT), ((0, 0), (0, -T % C), *((0, 0),) * (x.ndim - 2)))  # noqa: E731
    arrays = jax.tree.map(whole, arrays)

    def find(index, carry):
        cut = partial(jax.lax.dynamic_slice_in_dim, start_index=index * C, slice_size=C, axis=1)
        return function(carry, *jax.tree.map(cut, arrays))

    def turn(index, carry_and_found):
        carry, parts = find(index, carry_and_found[0])
        put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=index * C, axis=1)
        return carry, jax.tree.map(put, carry_and_found[1], parts)

    shapes = jax.eval_shape(find, 0, carry)[1]
    zeros = jax.tree.map(lambda x: jnp.zeros((B, T + -T % C, *x.shape[2:]), x.dtype), shapes)
    carry, found = jax.lax.fori_loop(0, -(-wanted // C), turn, (carry, zeros))
    return carry, jax.tree.map(partial(take, order_BT=back_BT), found)


def _gather(head_DV, dtype, axes):
    """The whole width of this device's part of the vocabulary, in the compute dtype."""
    head_DV = head_DV.astype(dtype)
    return jax.lax.all_gather(head_DV, axes.width, axis=0, tiled=True) if axes.width else head_DV


def _scores(x_BCD, teacher_BCD, targets_BC, head_DV, axes) -> Scores:
    project = partial(jnp.einsum, "BCD,DV->BCV", preferred_element_type=jnp.float32)
    V, teacher_BCV, hit_BCV = head_DV.shape[1], None, None
    first = jax.lax.axis_index(axes.vocabulary) * V if axes.vocabulary else 0
    at = lambda token_BC: (jnp.arange(V) + first)[None, None] == token_BC[..., None]  # noqa: E731
    if targets_BC is not None and targets_BC.ndim == 3:  # of a few tokens a column; the others have no share
        shares = zip(jnp.moveaxis(targets_BC, 2, 0), jnp.moveaxis(teacher_BCD, 2, 0), strict=True)
        teacher_BCV = sum(jnp.where(at(token_BC), share_BC[..., None], 0) for token_BC, share_BC in shares)
    else:
        teacher_BCV = None if teacher_BCD is None else project(teacher_BCD, head_DV)
        hit_BCV = None if targets_BC is None else at(targets_BC)
    return Scores(project(x_BCD, head_DV), teacher_BCV, hit_BCV, first, axes.vocabulary)
