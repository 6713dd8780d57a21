"""Where arrays live: one table from shape letters to mesh axes, read from the suffix of each parameter's name.

And work that each device does for its own rows and heads, since no compiler can split a kernel by itself.
"""

import math
from dataclasses import dataclass

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor", "context")
Axes = tuple[str, ...]


@dataclass(frozen=True)
class ShardingRules:
    """Mesh axes of each shape letter.

    B, the batch, is split over every device that holds a different example: `data` (slow network between slices) and
    `fsdp`. D, the width, is split over `fsdp`: parameters, gradients and optimizer state are gathered layer by layer
    when needed. N, K, F and V are split over `tensor`: heads, ffn and vocabulary are independent until the product that
    sums them. L, positions, is split over `context` (activations only). Other letters stay whole: H, for a head is one
    dot product, M and P, the parts of fused projections, and R, the rank of adapters.
    """

    B: Axes = ("data", "fsdp")
    L: Axes = ("context",)
    D: Axes = ("fsdp",)
    N: Axes = ("tensor",)
    K: Axes = ("tensor",)
    F: Axes = ("tensor",)
    V: Axes = ("tensor",)


TRAINING = ShardingRules()
# A forward reads all weights for a few tokens: shared out over `fsdp` they would be gathered each time. Rows alone are.
DECODING = ShardingRules(D=())


def letters(name: str) -> str:
    """The shape letters that a name ends in, `DNH` of `q_DNH`; "" of a name without any."""
    _, _, suffix = name.rpartition("_")
    return suffix if "_" in name and suffix.isalpha() and suffix.isupper() else ""


def named_sharding(mesh: Mesh, name: str, shape: tuple[int, ...], rules: ShardingRules = TRAINING):
    """The sharding of an array whose name ends in its shape letters; axes before them (stacked layers) are whole.

    That of `q_DNH` with four axes is (None, "fsdp", "tensor", None), less mesh axes that do not divide a dimension: 4
    key heads on 8 devices stay whole.
    """
    return NamedSharding(mesh, _dividing_spec(mesh, letters(name).rjust(len(shape), "_"), shape, rules))


def param_shardings(mesh: Mesh, params, rules: ShardingRules = TRAINING):
    """A tree of shardings like `params` (model state, gradients, moments; or shapes), by the name of each leaf.

    Leaves without shape letters are replicated.
    """

    def leaf(path, x):
        names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
        named = [name for name in names if letters(name)]
        return named_sharding(mesh, named[-1], x.shape, rules) if named else NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(leaf, params)


def constrain(x: jax.Array, axes: str, rules: ShardingRules = TRAINING) -> jax.Array:
    """An activation split as its letters say, `_` whole, on the mesh that is set, as far as its axes divide.

    Without it the compiler may follow the weights instead: rows whole, the width split, and all rows on every device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, _dividing_spec(mesh, axes, x.shape, rules))


def dividing(mesh: Mesh | AbstractMesh, axes: Axes, size: int) -> Axes:
    """Those of `axes` that the mesh has, if together they divide `size` evenly; else none."""
    axes = tuple(axis for axis in axes if axis in mesh.axis_names)
    return axes if size % math.prod(mesh.shape[axis] for axis in axes) == 0 else ()


def _dividing_spec(mesh, axes: str, shape: tuple[int, ...], rules: ShardingRules) -> PartitionSpec:
    split = [dividing(mesh, getattr(rules, axis, ()), size) for axis, size in zip(axes, shape, strict=True)]
    # One mesh axis stands by itself and none as None: the form in which jax writes specs.
    return PartitionSpec(*((of[0] if len(of) == 1 else of) or None for of in split))


def row_axes(batch: int) -> Axes:
    """The axes of the mesh that is set which share out so many rows."""
    return dividing(jax.sharding.get_abstract_mesh(), TRAINING.B, batch)


def head_axes(kv_heads: int) -> Axes:
    """The axes of the mesh that is set which share out so many key heads, and with them the heads of their queries."""
    return dividing(jax.sharding.get_abstract_mesh(), TRAINING.K, kv_heads)


def on_each_device(function, in_specs, out_specs):
    """The function on each device's part of its arguments, on the mesh that is set; without one as it is."""
    if jax.sharding.get_abstract_mesh().empty:
        return function
    # A kernel's outputs say nothing of how they vary over the mesh, so that cannot be checked.
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def by_rows(function, arrays, batch: int):
    """`function(arrays)` on each device for its own rows; in arguments and results rows are the first axis."""
    rows = PartitionSpec(row_axes(batch))
    return on_each_device(function, (rows,), rows)(arrays)


def by_rows_and_heads(attend_local, q_BTNH, k_BSKH, v_BSKH, arrays):
    """`attend_local(q, k, v, arrays)` on each device for its rows, first axes of `arrays`, and its heads."""
    rows = row_axes(q_BTNH.shape[0])
    x_spec = PartitionSpec(rows, None, head_axes(k_BSKH.shape[2]), None)
    local = on_each_device(attend_local, (x_spec, x_spec, x_spec, PartitionSpec(rows)), x_spec)
    return local(q_BTNH, k_BSKH, v_BSKH, arrays)
