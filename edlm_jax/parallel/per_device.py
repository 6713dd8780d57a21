"""Work that each device does for its own rows and heads: no compiler can split a kernel by itself."""

import jax
from jax.sharding import PartitionSpec

from edlm_jax.parallel.sharding import TRAINING, Axes, dividing


def row_axes(batch: int) -> Axes:
    """The axes of the mesh that is set which share out so many rows."""
    mesh = jax.sharding.get_abstract_mesh()
    return () if mesh.empty else dividing(mesh, TRAINING.B, batch)


def head_axes(kv_heads: int) -> Axes:
    """The axes of the mesh that is set which share out so many key heads, and with them the heads of their queries."""
    mesh = jax.sharding.get_abstract_mesh()
    return () if mesh.empty else dividing(mesh, TRAINING.K, kv_heads)


def by_rows(function, arrays, batch: int):
    """`function(arrays)` on each device for its own rows; in arguments and results rows are the first axis."""
    if jax.sharding.get_abstract_mesh().empty:
        return function(arrays)
    rows = PartitionSpec(row_axes(batch))
    return jax.shard_map(function, in_specs=(rows,), out_specs=rows, check_vma=False)(arrays)


def by_rows_and_heads(attend_local, q_BTNH, k_BSKH, v_BSKH, arrays):
    """`attend_local(q, k, v, arrays)` on each device for its own rows and heads, as far as these divide evenly.

    Rows are the first axis of all `arrays`.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return attend_local(q_BTNH, k_BSKH, v_BSKH, arrays)
    rows, heads = row_axes(q_BTNH.shape[0]), head_axes(k_BSKH.shape[2])
    x_spec = PartitionSpec(rows, None, heads, None)
    in_specs = (x_spec, x_spec, x_spec, PartitionSpec(rows))
    # A kernel's outputs say nothing of how they vary over the mesh, so that cannot be checked.
    sharded = jax.shard_map(attend_local, in_specs=in_specs, out_specs=x_spec, check_vma=False)
    return sharded(q_BTNH, k_BSKH, v_BSKH, arrays)
