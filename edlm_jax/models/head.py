"""Cross-entropy from hidden states, a chunk of columns at a time: no [tokens, vocabulary] logits ever exist.

Each row's supervised columns are put first, and chunks that hold none are never computed: about half of the positions
of a diffusion step have no loss. The backward pass computes a chunk's logits again. Chunks are of columns alone: the
vocabulary is never cut except by the mesh, so none is odd.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from edlm_jax.parallel.sharding import TRAINING, dividing

# An eighth of a row: small enough to skip most of what has no loss, large enough to keep the matrix unit busy.
_CHUNKS, _MOST_COLUMNS = 8, 512


def linear_cross_entropy(
    x_BTD: Float[Array, "B T D"],
    head_DV: Float[Array, "D V"],
    targets_BT: Int[Array, "B T"],
    supervised_BT: Bool[Array, "B T"],
) -> Float[Array, "B T"]:
    """float32 cross-entropy (nats) of softmax(x @ head) where `supervised`, 0 elsewhere; differentiable in x and head.

    Products are in the dtype of x with float32 sums; the head's gradient is summed in float32, whatever x is.

    On a mesh each device does its own rows and columns, with its share of the vocabulary. The head is gathered once
    and its gradient is scattered once, not once per chunk.
    """
    axes = _Axes.of(jax.sharding.get_abstract_mesh(), x_BTD.shape, head_DV.shape)
    return _cross_entropy(x_BTD, head_DV, targets_BT, supervised_BT, axes)


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


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _cross_entropy(x_BTD, head_DV, targets_BT, supervised_BT, axes):
    return _forward(x_BTD, head_DV, targets_BT, supervised_BT, axes)[0]


def _forward(x_BTD, head_DV, targets_BT, supervised_BT, axes):
    local = axes.run(partial(_forward_local, axes), ("BT_", "DV", "BT", "BT"), ("BT", "BT", "BT"))
    ce_BT, lse_BT, order_BT = local(x_BTD, head_DV, targets_BT, supervised_BT)
    return ce_BT, (x_BTD, head_DV, targets_BT, supervised_BT, lse_BT, order_BT)


def _backward(axes, residuals, g_BT):
    local = axes.run(partial(_backward_local, axes), ("BT_", "DV", "BT", "BT", "BT", "BT", "BT"), ("BT_", "DV"))
    dx_BTD, dhead_DV = local(*residuals, g_BT)
    return dx_BTD, dhead_DV, None, None


_cross_entropy.defvjp(_forward, _backward)


def _forward_local(axes, x_BTD, head_DV, targets_BT, supervised_BT):
    """(cross-entropy, log of the sum of exponentials, order of the columns)"""
    order_BT = jnp.argsort(~supervised_BT, axis=1, stable=True)
    order = _Order(order_BT, supervised_BT, axes)
    x_BTD, targets_BT = order.first(x_BTD), order.first(targets_BT)
    head_DV = _gather(head_DV, x_BTD.dtype, axes)

    def chunk(index, carry):
        logits_BCV, hit_BCV = _logits(order.chunk(x_BTD, index), head_DV, order.chunk(targets_BT, index), axes)
        top_BC1 = jax.lax.pmax(logits_BCV.max(-1, keepdims=True), axes.vocabulary)
        sums = jnp.exp(logits_BCV - top_BC1).sum(-1), jnp.where(hit_BCV, logits_BCV, 0).sum(-1)
        total_BC, target_BC = jax.lax.psum(sums, axes.vocabulary)
        lse_BC = top_BC1[..., 0] + jnp.log(total_BC)
        return order.put(carry[0], lse_BC - target_BC, index), order.put(carry[1], lse_BC, index)

    zeros_BT = jnp.zeros(targets_BT.shape, jnp.float32)
    ce_BT, lse_BT = jax.lax.fori_loop(0, order.chunks, chunk, (zeros_BT, zeros_BT))
    return jnp.where(supervised_BT, order.back(ce_BT), 0), order.back(lse_BT), order_BT


def _backward_local(axes, x_BTD, head_DV, targets_BT, supervised_BT, lse_BT, order_BT, g_BT):
    """(gradient of x, gradient of this device's part of the head)"""
    order = _Order(order_BT, supervised_BT, axes)
    g_BT = jnp.where(supervised_BT, g_BT, 0)
    x_BTD, targets_BT, lse_BT, g_BT = (order.first(array) for array in (x_BTD, targets_BT, lse_BT, g_BT))
    whole_DV = _gather(head_DV, x_BTD.dtype, axes)

    def chunk(index, carry):
        x_BCD, lse_BC, g_BC = (order.chunk(array, index) for array in (x_BTD, lse_BT, g_BT))
        logits_BCV, hit_BCV = _logits(x_BCD, whole_DV, order.chunk(targets_BT, index), axes)
        d_BCV = ((jnp.exp(logits_BCV - lse_BC[..., None]) - hit_BCV) * g_BC[..., None]).astype(x_BTD.dtype)
        dx_BCD = jnp.einsum("BCV,DV->BCD", d_BCV, whole_DV, preferred_element_type=jnp.float32)
        dhead_DV = jnp.einsum("BCD,BCV->DV", x_BCD, d_BCV, preferred_element_type=jnp.float32)
        dx_BCD = jax.lax.psum(dx_BCD, axes.vocabulary).astype(x_BTD.dtype)
        return order.put(carry[0], dx_BCD, index), carry[1] + dhead_DV

    zeros = jnp.zeros_like(x_BTD), jnp.zeros(whole_DV.shape, jnp.float32)
    dx_BTD, dhead_DV = jax.lax.fori_loop(0, order.chunks, chunk, zeros)
    summed = tuple(axis for axis in axes.rows + axes.columns if axis not in axes.width)
    if axes.width:
        dhead_DV = jax.lax.psum_scatter(dhead_DV, axes.width, scatter_dimension=0, tiled=True)
    return order.back(dx_BTD), jax.lax.psum(dhead_DV, summed).astype(head_DV.dtype)


class _Order:
    """Columns with the supervised ones first, in chunks; only the first `chunks` of them hold any."""

    def __init__(self, order_BT, supervised_BT, axes):
        T = supervised_BT.shape[1]
        self.columns = min(-(-T // _CHUNKS), _MOST_COLUMNS)
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

    def chunk(self, x, index):
        """One chunk of columns."""
        return jax.lax.dynamic_slice_in_dim(x, index * self.columns, self.columns, axis=1)

    def put(self, x, part, index):
        """x with one chunk replaced."""
        return jax.lax.dynamic_update_slice_in_dim(x, part, index * self.columns, axis=1)


def _take(x, order_BT):
    return jnp.take_along_axis(x, order_BT if x.ndim == 2 else order_BT[..., None], axis=1)


def _gather(head_DV, dtype, axes):
    """The whole width of this device's part of the vocabulary, in the compute dtype."""
    head_DV = head_DV.astype(dtype)
    return jax.lax.all_gather(head_DV, axes.width, axis=0, tiled=True) if axes.width else head_DV


def _logits(x_BCD, head_DV, targets_BC, axes):
    """(float32 logits of this device's part of the vocabulary, where the target is)"""
    logits_BCV = jnp.einsum("BCD,DV->BCV", x_BCD, head_DV, preferred_element_type=jnp.float32)
    V = head_DV.shape[1]
    first = jax.lax.axis_index(axes.vocabulary) * V if axes.vocabulary else 0
    return logits_BCV, (jnp.arange(V) + first)[None, None] == targets_BC[..., None]
