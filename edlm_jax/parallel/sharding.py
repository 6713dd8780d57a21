"""Where arrays live: one table from shape letters to mesh axes, read from the suffix of each parameter's name."""

from dataclasses import dataclass

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor", "context")
Axes = str | tuple[str, ...] | None


@dataclass(frozen=True)
class ShardingRules:
    """Mesh axes of each shape letter.

    B, the batch, is split over every device that holds a different example: `data` (slow network between slices) and
    `fsdp`. D, the width, is split over `fsdp`: parameters, gradients and optimizer state are gathered layer by layer
    when needed. N, K, F and V are split over `tensor`: heads, ffn and vocabulary are independent until the product that
    sums them. L, positions, is split over `context` (activations only). H stays whole: a head is one dot product. M and
    P are the parts of fused projections, R the rank of adapters: whole too.
    """

    B: Axes = ("data", "fsdp")
    L: Axes = "context"
    D: Axes = "fsdp"
    N: Axes = "tensor"
    K: Axes = "tensor"
    F: Axes = "tensor"
    V: Axes = "tensor"
    H: Axes = None
    M: Axes = None
    P: Axes = None
    R: Axes = None


def partition_spec(name: str, ndim: int, rules: ShardingRules = ShardingRules()) -> PartitionSpec:  # noqa: B008 (frozen)
    """The spec of an array whose name ends in its shape letters; axes before them (stacked layers) are whole.

    `partition_spec("q_DNH", 4)` is `PartitionSpec(None, "fsdp", "tensor", None)`.
    """
    letters = name.rsplit("_", 1)[-1]
    return PartitionSpec(*(None,) * (ndim - len(letters)), *(getattr(rules, letter) for letter in letters))


def named_sharding(mesh: Mesh, name: str, shape: tuple[int, ...], rules: ShardingRules = ShardingRules()):  # noqa: B008
    """`partition_spec` on a mesh, less axes that do not divide a dimension (4 key heads on 8 devices stay whole)."""
    spec = partition_spec(name, len(shape), rules)
    kept = [axes if divides(mesh, axes, size) else None for axes, size in zip(spec, shape, strict=True)]
    return NamedSharding(mesh, PartitionSpec(*kept))


def param_shardings(mesh: Mesh, params, rules: ShardingRules = ShardingRules()):  # noqa: B008 (frozen)
    """A tree of shardings like `params` (arrays or ShapeDtypeStructs), by the name of each leaf.

    Works for whatever holds such leaves: model state, gradients, optax moments. Leaves without shape letters are
    replicated.
    """

    def leaf(path, x):
        names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
        named = [name for name in names if _is_named(name)]
        return named_sharding(mesh, named[-1], x.shape, rules) if named else NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(leaf, params)


def _is_named(name: str) -> bool:
    return "_" in name and name.rsplit("_", 1)[-1].isalpha() and name.rsplit("_", 1)[-1].isupper()


def constrain(x: jax.Array, letters: str, rules: ShardingRules = ShardingRules()) -> jax.Array:  # noqa: B008 (frozen)
    """An activation split as its letters say, `_` whole, on the mesh that is set, as far as its axes divide.

    Without it the compiler may follow the weights instead: rows whole, the width split, and all rows on every device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    axes = [None if letter == "_" else getattr(rules, letter) for letter in letters]
    kept = [axis if divides(mesh, axis, size) else None for axis, size in zip(axes, x.shape, strict=True)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*kept))


def divides(mesh: Mesh, axes: Axes, size: int) -> bool:
    """Can an axis of `size` be split over these mesh axes?"""
    count = 1
    for axis in (axes,) if isinstance(axes, str) else axes or ():
        count *= mesh.shape[axis]
    return size % count == 0
