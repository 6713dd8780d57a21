"""Where the data stands, in a checkpoint: a small JSON file per shard, read back by whoever then reads that shard."""

import dataclasses
import json
from pathlib import Path

import orbax.checkpoint as ocp

from edlm_jax.data.shards import BatchIterator


class DataHandler(ocp.CheckpointHandler):
    """Orbax's way of saving a BatchIterator; restoring sets one back in place."""

    def save(self, directory: Path, args: "DataSave") -> None:
        """Processes that read the same shard write the same file."""
        for shard, state in args.item.get_state().items():
            (directory / _file_name(shard)).write_text(json.dumps(state))

    def restore(self, directory: Path, args: "DataRestore") -> BatchIterator:
        """The iterator that was passed, at that moment."""
        args.item.set_state(
            {shard: json.loads((directory / _file_name(shard)).read_text()) for shard in args.item.shards}
        )
        return args.item


@ocp.args.register_with_handler(DataHandler, for_save=True)
@dataclasses.dataclass
class DataSave(ocp.args.CheckpointArgs):
    """Saves the state of `item`."""

    item: BatchIterator


@ocp.args.register_with_handler(DataHandler, for_restore=True)
@dataclasses.dataclass
class DataRestore(ocp.args.CheckpointArgs):
    """Sets `item` back."""

    item: BatchIterator


def _file_name(shard: str) -> str:
    return f"shard_{shard}.json"
