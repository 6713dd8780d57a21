"""Batches on a mesh: every row and column where it belongs, however the devices are numbered."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from edlm_jax.parallel.mesh import local_rows, to_global
from edlm_jax.parallel.sharding import MESH_AXES
from tests.seeds import fresh_rng


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (2, 1, 1, 2), (1, 2, 2, 1), (2, 2, 1, 1)])
def test_a_batch_is_the_same_array_on_every_mesh(shape):
    devices = fresh_rng().permutation(jax.devices()[:4]).reshape(shape)
    mesh = Mesh(devices, MESH_AXES, axis_types=(AxisType.Auto,) * 4)
    rows = local_rows(mesh, 12)
    assert rows == list(range(12))  # one process holds them all
    value_BL = fresh_rng().integers(0, 99, (12, 6), np.int32)
    array = to_global(dict(tokens=value_BL), mesh, rows, 12)["tokens"]
    np.testing.assert_array_equal(array, value_BL)
    assert {shard.data.shape for shard in array.addressable_shards} == {(12 // (shape[0] * shape[1]), 6 // shape[3])}
