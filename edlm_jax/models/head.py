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
from edlm_jax.parallel.sharding import TRAINING, dividing

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
    shares. Products are in the dtype of x with float32
    sums; the head's gradient is summed in float32, whatever x is.

    On a mesh each device does its own rows and columns, with its share of the vocabulary. The head is gathered once
    and its gradient is scattered once, not once per chunk.
    """
    axes = _Axes.of(jax.sharding.get_abstract_mesh(), x_BTD.shape, head_DV.shape)
    lossy = _under_frozen_head if frozen else _column_loss
    return lossy(x_BTD, head_DV, teacher_BTD, targets_BT, wanted_BT, loss, axes)


def best_tokens(
    x_BTD: Float[Array, "B T D"], head_DV: Float[Array, "D V"], wanted_BT: Bool[Array, "B T"], count: int
) -> tuple[Float[Array, "B T K"], Int[Array, "B T K"]]:
    """The `count` largest logits of x @ head, and whose they are, where they are wanted; the same way."""
    count = min(count, head_DV.shape[1])
    axes = _Axes.of(jax.sharding.get_abstract_mesh(), x_BTD.shape, head_DV.shape)
    return axes.run(partial(_best_local, count, axes), ("BT_", "DV", "BT"), ("BT_", "BT_"))(x_BTD, head_DV, wanted_BT)


class _Axes(NamedTuple):
    """Mesh axes that split rows, columns, the width of the head and its vocabulary; () where nothing does."""

    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    width: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    on_mesh: bool = False

    @classmethod
    def of(cls, mesh, x_shape, head_shape):
        if mesh.empty:
            return cls()
        rows, columns = dividing(mesh, TRAINING.B, x_shape[0]), dividing(mesh, TRAINING.L, x_shape[1])
        # A head split over devices that hold the same rows would need its gradient sliced, not summed.
        width = dividing(mesh, TRAINING.D, head_shape[0]) if rows else ()
        return cls(rows, columns, width, dividing(mesh, TRAINING.V, head_shape[1]), True)

    def run(self, function, in_specs, out_specs):
        """The function on each device's part; letters of a spec say what its axes are."""
        if not self.on_mesh:
            return function
        spec = dict(B=self.rows, T=self.columns, D=self.width, V=self.vocabulary, _=None)
        to_spec = lambda letters: PartitionSpec(*(spec[letter] for letter in letters))  # noqa: E731
        specs = jax.tree.map(to_spec, (in_specs, out_specs))
        return jax.shard_map(function, in_specs=specs[0], out_specs=specs[1], check_vma=False)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _column_loss(x_BTD, head_DV, teacher_BTD, targets_BT, wanted_BT, loss, axes):
    return _forward(x_BTD, head_DV, teacher_BTD, targets_BT, wanted_BT, loss, axes)[0]


def _specs(teacher_BTD, targets_BT):
    of = lambda x: None if x is None else "BT_"[: x.ndim]  # noqa: E731
    return "BT_", "DV", of(teacher_BTD), of(targets_BT), "BT"


def _forward(x_BTD, head_DV, teacher_BTD, targets_BT, wanted_BT, loss, axes):
    outputs = ("BT",) * loss.values, ("BT",) * loss.stats, "BT"
    local = axes.run(partial(_forward_local, loss, axes), _specs(teacher_BTD, targets_BT), outputs)
    values, stats, order_BT = local(x_BTD, head_DV, teacher_BTD, targets_BT, wanted_BT)
    return values, (x_BTD, head_DV, teacher_BTD, targets_BT, wanted_BT, stats, order_BT)


def _backward(loss, axes, residuals, gradients):
    inputs = *_specs(*residuals[2:4]), ("BT",) * loss.stats, "BT", ("BT",) * loss.values
    dx_BTD, dhead_DV = axes.run(partial(_backward_local, loss, axes), inputs, ("BT_", "DV"))(*residuals, gradients)
    return dx_BTD, dhead_DV, None, None, None


_column_loss.defvjp(_forward, _backward)


def _forward_local(loss, axes, x_BTD, head_DV, teacher_BTD, targets_BT, wanted_BT):
    """(values, stats, order of the columns)"""
    order_BT = jnp.argsort(~wanted_BT, axis=1, stable=True)
    order = _Order(order_BT, wanted_BT, axes)
    arrays = jax.tree.map(order.first, (x_BTD, teacher_BTD, targets_BT))
    head_DV = _gather(head_DV, x_BTD.dtype, axes)

    def chunk(index, carry):
        found = loss.value(_scores(*order.chunk(arrays, index), head_DV, axes))
        return jax.tree.map(lambda x, part: order.put(x, part, index), carry, found)

    zeros_BT = jnp.zeros(arrays[0].shape[:2], jnp.float32)
    zeros = (zeros_BT,) * loss.values, (zeros_BT,) * loss.stats
    values, stats = jax.tree.map(order.back, jax.lax.fori_loop(0, order.chunks, chunk, zeros))
    return tuple(jnp.where(wanted_BT, value_BT, 0) for value_BT in values), stats, order_BT


def _backward_local(loss, axes, x_BTD, head_DV, teacher_BTD, targets_BT, wanted_BT, stats, order_BT, gradients):
    """(gradient of x, gradient of this device's part of the head)"""
    order = _Order(order_BT, wanted_BT, axes)
    gradients = tuple(jnp.where(wanted_BT, g_BT, 0) for g_BT in gradients)
    arrays, columns = jax.tree.map(order.first, ((x_BTD, teacher_BTD, targets_BT), (stats, gradients)))
    whole_DV = _gather(head_DV, x_BTD.dtype, axes)

    def chunk(index, carry):
        part = order.chunk(arrays, index)
        aside = jax.tree.map(lambda x_BC: x_BC[..., None], order.chunk(columns, index))
        d_BCV = loss.slope(_scores(*part, whole_DV, axes), *aside).astype(x_BTD.dtype)
        dx_BCD = jnp.einsum("BCV,DV->BCD", d_BCV, whole_DV, preferred_element_type=jnp.float32)
        dhead_DV = jnp.einsum("BCD,BCV->DV", part[0], d_BCV, preferred_element_type=jnp.float32)
        dx_BCD = jax.lax.psum(dx_BCD, axes.vocabulary).astype(x_BTD.dtype)
        return order.put(carry[0], dx_BCD, index), carry[1] + dhead_DV

    zeros = jnp.zeros_like(arrays[0]), jnp.zeros(whole_DV.shape, jnp.float32)
    dx_BTD, dhead_DV = jax.lax.fori_loop(0, order.chunks, chunk, zeros)
    summed = tuple(axis for axis in axes.rows + axes.columns if axis not in axes.width)
    if axes.width:
        dhead_DV = jax.lax.psum_scatter(dhead_DV, axes.width, scatter_dimension=0, tiled=True)
    return order.back(dx_BTD), jax.lax.psum(dhead_DV, summed).astype(head_DV.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _under_frozen_head(x_BTD, head_DV, teacher_BTD, targets_BT, wanted_BT, loss, axes):
    return _forward(x_BTD, head_DV, teacher_BTD, targets_BT, wanted_BT, loss, axes)[0]


def _forward_with_slopes(x_BTD, head_DV, teacher_BTD, targets_BT, wanted_BT, loss, axes):
    outputs = ("BT",) * loss.values, ("BT_",) * loss.values
    local = axes.run(partial(_slopes_local, loss, axes), _specs(teacher_BTD, targets_BT), outputs)
    return local(x_BTD, head_DV, teacher_BTD, targets_BT, wanted_BT)


def _slopes_local(loss, axes, x_BTD, head_DV, teacher_BTD, targets_BT, wanted_BT):
    """(values, of each its gradient by x)"""
    order = _Order(jnp.argsort(~wanted_BT, axis=1, stable=True), wanted_BT, axes, -(-_ROWS // len(x_BTD)))
    arrays = jax.tree.map(order.first, (x_BTD, teacher_BTD, targets_BT))
    head_DV = _gather(head_DV, x_BTD.dtype, axes)

    def chunk(index, carry):
        scores = _scores(*order.chunk(arrays, index), head_DV, axes)
        values, stats = loss.value(scores)
        aside = [x_BC[..., None] for x_BC in stats]

        def slope(which):
            d_BCV = loss.slope(scores, aside, tuple(np.eye(loss.values, dtype=np.float32)[which])).astype(x_BTD.dtype)
            dx_BCD = jnp.einsum("BCV,DV->BCD", d_BCV, head_DV, preferred_element_type=jnp.float32)
            return jax.lax.psum(dx_BCD, axes.vocabulary).astype(x_BTD.dtype)

        found = values, tuple(map(slope, range(loss.values)))
        return jax.tree.map(lambda x, part: order.put(x, part, index), carry, found)

    padded_BTD = jnp.zeros_like(arrays[0])
    zeros = (jnp.zeros(padded_BTD.shape[:2]),) * loss.values, (padded_BTD,) * loss.values
    values, slopes = jax.tree.map(order.back, jax.lax.fori_loop(0, order.chunks, chunk, zeros))
    wanted = lambda x: jnp.where(wanted_BT.reshape(*wanted_BT.shape, *[1] * (x.ndim - 2)), x, 0)  # noqa: E731
    return jax.tree.map(wanted, (values, slopes))


def _backward_of_slopes(loss, axes, slopes, gradients):
    parts = [g_BT[..., None] * slope_BTD for g_BT, slope_BTD in zip(gradients, slopes, strict=True)]
    return sum(parts).astype(slopes[0].dtype), None, None, None, None


_under_frozen_head.defvjp(_forward_with_slopes, _backward_of_slopes)


def _best_local(count, axes, x_BTD, head_DV, wanted_BT):
    order = _Order(jnp.argsort(~wanted_BT, axis=1, stable=True), wanted_BT, axes)
    first_BTD, head_DV = order.first(x_BTD), _gather(head_DV, x_BTD.dtype, axes)

    def chunk(index, carry):
        found = _scores(order.chunk(first_BTD, index), None, None, head_DV, axes).best(count)
        return jax.tree.map(lambda x, part: order.put(x, part, index), carry, found)

    zeros = [jnp.zeros((*first_BTD.shape[:2], count), dtype) for dtype in (jnp.float32, jnp.int32)]
    return jax.tree.map(order.back, jax.lax.fori_loop(0, order.chunks, chunk, tuple(zeros)))


class _Order:
    """Columns with the supervised ones first, in chunks; only the first `chunks` of them hold any."""

    def __init__(self, order_BT, supervised_BT, axes, fewest: int = 1):
        B, T = supervised_BT.shape
        most = min(_MOST_COLUMNS, max(_MOST_TOKENS // B, 1))
        self.columns = min(max(-(-T // _CHUNKS), min(fewest, T)), most)
        self.padding = -T % self.columns
        before_BT = jnp.cumsum(supervised_BT, axis=1)  # supervised ones up to here
        others_BT = before_BT[:, -1:] + jnp.arange(T)[None] - before_BT
        self.order_BT, self.back_BT = order_BT, jnp.where(supervised_BT, before_BT - 1, others_BT)
        most = jax.lax.pmax(before_BT[:, -1].max(), axes.rows + axes.columns)  # devices keep step
        self.chunks = -(-most // self.columns)

    def first(self, x):
        """Supervised columns first, padded to whole chunks."""
        return jnp.pad(_take(x, self.order_BT), ((0, 0), (0, self.padding)) + ((0, 0),) * (x.ndim - 2))

    def back(self, x):
        """Columns where they came from."""
        return _take(x, self.back_BT)

    def chunk(self, arrays, index):
        """One chunk of columns of each."""
        cut = partial(jax.lax.dynamic_slice_in_dim, start_index=index * self.columns, slice_size=self.columns, axis=1)
        return jax.tree.map(cut, arrays)

    def put(self, x, part, index):
        """x with one chunk replaced."""
        return jax.lax.dynamic_update_slice_in_dim(x, part, index * self.columns, axis=1)


def _take(x, order_BT):
    return jnp.take_along_axis(x, order_BT if x.ndim == 2 else order_BT[..., None], axis=1)


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
