"""How orbax reads and writes what a checkpoint is made of: arrays, and where the data stands.

Of arrays this leans on its insides, as seen with orbax-checkpoint 0.12.8: a handler of one's own has a public place
(`type_handlers`); what it replaces, reading arrays side by side, has not. The data's state is a small JSON file per
shard, read back by whoever then reads that shard. Beside them stands how many documents each source had: the order of a
corpus, and with it what comes next, follows from that number.
"""

import dataclasses
import gc
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from edlm_jax.data.shards import BatchIterator
from edlm_jax.errors import InputError

_SHARD, _SIZES = "shard_{}.json", "documents.json"


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


class DataHandler(ocp.CheckpointHandler):
    """Orbax's way of saving a BatchIterator; restoring sets one back in place."""

    def save(self, directory: Path, args: "DataItem") -> None:
        """Processes that read the same shard write the same file."""
        for shard, state in args.item.get_state().items():
            (directory / _SHARD.format(shard)).write_text(json.dumps(state))
        (directory / _SIZES).write_text(json.dumps([tally.size for tally in args.item.tallies]))

    def restore(self, directory: Path, args: "DataItem") -> BatchIterator:
        """The iterator that was passed, at that moment."""
        args.item.set_state(
            {shard: json.loads((directory / _SHARD.format(shard)).read_text()) for shard in args.item.shards}
        )
        return args.item


@ocp.args.register_with_handler(DataHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class DataItem(ocp.args.CheckpointArgs):
    """The iterator whose state is saved, or which is set back."""

    item: BatchIterator


def check_sizes(checkpoint: Path, data: BatchIterator, sources: Sequence[Mapping[str, Any]]) -> None:
    """Refuses to go on from a checkpoint with sources that have grown or shrunk since."""
    path = checkpoint / "data" / _SIZES
    if not path.exists():  # written before sizes were
        return
    for source, before, tally in zip(sources, json.loads(path.read_text()), data.tallies, strict=True):
        if before != tally.size:
            raise InputError(
                f"{dict(source)} had {before:,} documents when {checkpoint} was written and has {tally.size:,} now: "
                "some would be seen twice and others never. Put it back as it was; or export what is trained (edlm "
                "export), and start another run from it with config.init.path and another --workdir"
            )
