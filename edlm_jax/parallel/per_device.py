"""Kernels on a mesh: each device computes its own rows and heads; no compiler can split a kernel by itself."""

import jax
from jax.sharding import PartitionSpec

from edlm_jax.parallel.sharding import TRAINING, ShardingRules, dividing


def per_device(attend_local, q_BTNH, k_BSKH, v_BSKH, by_row, rules: ShardingRules = TRAINING):
    """`attend_local(q, k, v, by_row)` on each device for its own rows and heads, as far as these divide evenly.

    `by_row` is a tree of int32[B, columns].
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return attend_local(q_BTNH, k_BSKH, v_BSKH, by_row)
    rows, heads = dividing(mesh, rules.B, q_BTNH.shape[0]), dividing(mesh, rules.K, k_BSKH.shape[2])
    x_spec = PartitionSpec(rows, None, heads, None)
    in_specs = (x_spec, x_spec, x_spec, PartitionSpec(rows, None))
    # A kernel's outputs say nothing of how they vary over the mesh, so that cannot be checked.
    sharded = jax.shard_map(attend_local, in_specs=in_specs, out_specs=x_spec, check_vma=False)
    return sharded(q_BTNH, k_BSKH, v_BSKH, by_row)
