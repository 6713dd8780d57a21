"""How the TPU compiler gathers a matrix and sums its gradient, by the torus and by the devices that share it out.

    python -m tests.benchmarks.torus [TOPOLOGY/DATA/WIDTH ...]

DATA is the mesh's, the rest is fsdp; the matrix is WIDTH x 3 WIDTH. Needs libtpu and no TPU (docs/compile.md).
"""

import os
import sys

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from edlm_jax.benchmarks.hlo import collectives
from edlm_jax.benchmarks.topologies import topology_devices
from edlm_jax.parallel.mesh import Axes, make_mesh

CASES = "v5e:8x8/1/4096 v5p:8x8x1/1/4096 v5p:4x4x4/1/4096 v5p:4x4x4/1/8192 v5p:4x4x4/2/4096 v5p:4x4x4/4/4096"
CASES += " tpu7x:4x4x4/1/4096 tpu7x:4x4x4/8/4096"


def step(matrix_DF: jax.Array, x_BD: jax.Array) -> jax.Array:
    """Descent of any loss that multiplies rows with a matrix twice."""

    def loss(matrix_DF):
        half_DF = matrix_DF.astype(jnp.bfloat16)
        return jnp.square(jnp.tanh(x_BD @ half_DF) @ half_DF.T).astype(jnp.float32).sum()

    return matrix_DF - jax.grad(loss)(matrix_DF)


def found(topology: str, data: int, width: int) -> dict[str, dict[str, int]]:
    """Collectives of a step with 512 rows a device."""
    mesh = make_mesh(Axes(data, -1), topology_devices(topology))
    of_matrix, of_rows = (NamedSharding(mesh, PartitionSpec(axes)) for axes in ("fsdp", ("data", "fsdp")))
    matrix_DF = jax.ShapeDtypeStruct((width, 3 * width), jnp.float32, sharding=of_matrix)
    x_BD = jax.ShapeDtypeStruct((512 * mesh.size, width), jnp.bfloat16, sharding=of_rows)
    return collectives(jax.jit(step).lower(matrix_DF, x_BD).compile().as_text())


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    for case in sys.argv[1:] or CASES.split():
        topology, data, width = case.split("/")
        sizes = {kind: round(one["bytes"] / 2**20) for kind, one in found(topology, int(data), int(width)).items()}
        print(case, ", ".join(f"{kind} {size} MiB" for kind, size in sizes.items()), flush=True)
