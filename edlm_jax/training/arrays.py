"""How orbax reads and writes a tree of arrays: all that leans on its insides, as seen with orbax-checkpoint 0.12.8.

A handler of one's own has a public place (`type_handlers`); what it replaces, reading arrays side by side, has not.
"""

import gc

import jax
import numpy as np
import orbax.checkpoint as ocp


class _OneByOne(ocp.type_handlers.ArrayHandler):
    """Restores an array when the devices have taken the last one. By itself orbax reads up to 96 GB before that: on one
    device a model would be in memory twice."""

    async def deserialize(self, infos, args=None):
        arrays = []
        for info, arg in zip(infos, args, strict=True):
            arrays += jax.block_until_ready(await super().deserialize([info], [arg]))
            gc.collect(0)  # jax lets go of what was copied to a device when Python collects
        return arrays


def array_handler() -> ocp.PyTreeCheckpointHandler:
    """Of one item of a checkpoint: arrays, and numbers on the host."""
    registry = ocp.type_handlers.create_type_handler_registry(
        (np.number, ocp.type_handlers.ScalarHandler()), (jax.Array, _OneByOne())
    )
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def restore_args(abstract) -> ocp.args.PyTreeRestore:
    """A tree of ShapeDtypeStructs, onto their shardings."""
    return ocp.args.PyTreeRestore(abstract, ocp.checkpoint_utils.construct_restore_args(abstract))
