"""The device mesh, and batches on it: rows over `data` and `fsdp`, columns over `context`."""

import contextlib
import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from edlm_jax.errors import InputError
from edlm_jax.parallel.sharding import MESH_AXES, TRAINING

BATCH_SPEC = PartitionSpec(TRAINING.B, TRAINING.L)


@dataclasses.dataclass(frozen=True)
class Axes:
    """Devices per axis of a mesh: one of them may be -1, what is left; of `data` 0 is one for each slice."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    context: int = 1


def make_mesh(axes: Axes, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of these axes, or the reason why these devices cannot form it.

    Devices default to all of this run's. Where they are several slices, joined by a slow network, `data` alone crosses
    from one to another.
    """
    devices = jax.devices() if devices is None else devices
    slices = len({slice_of(device) for device in devices})
    asked, count = dataclasses.asdict(axes), len(devices)
    sizes = [slices if axis == "data" and axes.data == 0 else asked[axis] for axis in MESH_AXES]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise InputError(f"config.mesh: each axis is a positive number, at most one of them -1, not {asked}")
    known = int(np.prod([size for size in sizes if size != -1]))
    sizes = [count // known if size == -1 else size for size in sizes]
    if int(np.prod(sizes)) != count:
        raise InputError(f"config.mesh: {asked} does not use all of the {count} devices exactly once")
    if sizes[0] % slices:
        raise InputError(f"config.mesh.data={sizes[0]} is not divisible by the {slices} slices: 0 is one for each")
    return _laid_out(sizes, devices, slices)


def decoding_mesh(tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh to decode on: each group of `tensor` devices holds the weights once and has rows of its own.

    Devices default to all of this process's. What `load_pretrained(..., mesh=)` puts there decodes there.
    """
    devices = jax.local_devices() if devices is None else devices
    if tensor < 1 or len(devices) % tensor:
        raise InputError(f"the weights cannot be shared out to {tensor} of {len(devices)} devices: choose a divisor")
    return _laid_out((len(devices) // tensor, 1, tensor, 1), devices)


def _laid_out(sizes: Sequence[int], devices: Sequence[jax.Device], slices: int = 1) -> Mesh:
    """Axes along a TPU's own where they fit; where one of them is 8 of 4 x 4 x 4 chips, say, an own one is split."""
    if slices == 1:
        found = create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    else:
        within, across = [sizes[0] // slices, *sizes[1:]], [slices, 1, 1, 1]
        found = create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
    return Mesh(found, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def mesh_of(tree) -> Mesh | None:
    """The mesh on which all arrays of a tree lie; None if that is one device, or they are only traced."""
    shardings = [getattr(x, "sharding", None) for x in jax.tree.leaves(tree) if not isinstance(x, jax.core.Tracer)]
    meshes = {sharding.mesh for sharding in shardings if isinstance(sharding, NamedSharding)}
    mesh = meshes.pop() if len(meshes) == 1 else None
    return mesh if isinstance(mesh, Mesh) and mesh.size > 1 else None


def on_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Where what is traced finds the mesh; without one all is as before."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def check_batch(batch: dict[str, np.ndarray], *, grid: int) -> None:
    """Refuses rows that are packed without alignment: two documents in one block would share its noise and its grid."""
    segments_BL = batch["segment_ids"]
    blocks = segments_BL.reshape(len(segments_BL), -1, grid)
    least = np.where(blocks > 0, blocks, np.iinfo(np.int32).max).min(-1)
    if np.any(blocks.max(-1) > least):
        raise InputError(f"a batch holds two documents in one block of {grid}: pack documents on block boundaries")


def local_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """The rows of the global batch that this process's devices hold, in ascending order.

    They need not be consecutive (a TPU mesh follows the torus), nor this process's alone (its devices may share a row's
    columns or a tensor axis with another's).
    """
    sharding = NamedSharding(mesh, PartitionSpec(BATCH_SPEC[0]))
    parts = [index for index in sharding.addressable_devices_indices_map((batch_size,)).values() if index]
    return sorted({row for part in parts for row in range(*part[0].indices(batch_size))})


def to_global(batch: dict[str, np.ndarray], mesh: Mesh, rows: Sequence[int], batch_size: int) -> dict[str, jax.Array]:
    """The rows `rows` of a batch, those of `local_rows` -> global arrays on the mesh."""
    sharding, place = NamedSharding(mesh, BATCH_SPEC), {row: number for number, row in enumerate(rows)}

    def part(value_BL, index):
        start, stop, _ = index[0].indices(batch_size)
        return value_BL[place[start] : place[start] + stop - start, index[1]]

    put = lambda x_BL: jax.make_array_from_callback((batch_size, x_BL.shape[1]), sharding, partial(part, x_BL))  # noqa: E731
    return {name: put(value_BL) for name, value_BL in batch.items()}


def in_pieces(tree, count: int):
    """Rows as `count` smaller batches along a new first axis, r in piece r % count: devices split their own."""
    return jax.tree.map(lambda x_BL: x_BL.reshape(-1, count, *x_BL.shape[1:]).swapaxes(0, 1), tree)


def from_pieces(tree):
    """The inverse of `in_pieces`."""
    return jax.tree.map(lambda x_PBL: x_PBL.swapaxes(0, 1).reshape(-1, *x_PBL.shape[2:]), tree)


def sum_of_pieces(function, tree, count: int):
    """`function(tree)`, whose numbers add up over rows, of one of `in_pieces` after the other."""
    if count == 1:
        return function(tree)
    return jax.tree.map(lambda x: x.sum(0), jax.lax.map(function, in_pieces(tree, count)))


def slice_of(device: jax.Device) -> int:
    """The slice that a device belongs to, from 0."""
    return getattr(device, "slice_index", None) or 0  # TPUs of several slices alone have one
