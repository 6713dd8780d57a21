"""Where the data stands, in a checkpoint: a small JSON file per shard, read back by whoever then reads that shard.

Beside them stands how many documents each source had: the order of a corpus, and with it what comes next, follows from
that number.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from edlm_jax.data.shards import BatchIterator
from edlm_jax.errors import InputError

_SIZES = "documents.json"


class DataHandler(ocp.CheckpointHandler):
    """Orbax's way of saving a BatchIterator; restoring sets one back in place."""

    def save(self, directory: Path, args: "DataItem") -> None:
        """Processes that read the same shard write the same file."""
        for shard, state in args.item.get_state().items():
            (directory / _file_name(shard)).write_text(json.dumps(state))
        (directory / _SIZES).write_text(json.dumps([tally.size for tally in args.item.tallies]))

    def restore(self, directory: Path, args: "DataItem") -> BatchIterator:
        args.item.set_state(
            {shard: json.loads((directory / _file_name(shard)).read_text()) for shard in args.item.shards}
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


def _file_name(shard: str) -> str:
    return f"shard_{shard}.json"
