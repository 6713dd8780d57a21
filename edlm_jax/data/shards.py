"""Batches that do not depend on who reads them: a batch is made of shards, each a stream of rows of its own.

Eight rows in four shards, as two processes and as one read them:

    shard        0     0     1     1     2     2     3     3
    row          0     1     2     3     4     5     6     7
    of two       p0    p0    p0    p0    p1    p1    p1    p1      each runs two streams
    of one       p0    p0    p0    p0    p0    p0    p0    p0      it runs all four

A process runs the shards that its rows are in and leaves out what other processes need of them. The state is one
entry per shard, so that it can be restored among any number of processes.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import grain
import numpy as np

from edlm_jax.data.counts import Tally
from edlm_jax.data.packing import Row

PREFETCHED = 4  # batches


class BatchIterator:
    """Batches one after the other, and where they stand: `get_state()` is {shard: numbers}, ready for JSON."""

    def __init__(self, iterators: dict[str, grain.DatasetIterator], tallies: list[Tally]):
        self._iterators, self.tallies = iterators, tallies  # of each source, as far as this process reads it
        self._failed: dict | None = None  # the state before a batch that could not be made

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        before = self.get_state()
        try:
            parts = [next(iterator) for iterator in self._iterators.values()]
        except Exception:
            self._failed = before  # shards that come before the one that failed have gone on
            raise
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def get_state(self) -> dict:
        """The state of each shard that this process reads."""
        return self._failed or {shard: iterator.get_state() for shard, iterator in self._iterators.items()}

    def set_state(self, state: dict) -> None:
        """Goes on bitwise from there; `state` holds at least the shards that this process reads."""
        for shard, iterator in self._iterators.items():
            iterator.set_state(state[shard])

    @property
    def shards(self) -> list[str]:
        """The shards that this process reads."""
        return list(self._iterators)

    def close(self) -> None:
        """Ends the prefetching threads."""
        for iterator in self._iterators.values():
            iterator.close()


def open_shards(
    open_shard: Callable[[int], grain.IterDataset], shards: int, batch_size: int, rows: Sequence[int]
) -> dict[str, grain.DatasetIterator]:
    """Rows `rows` of every batch of `batch_size`, by shards; `open_shard(shard)` is the stream of one's rows."""
    size, iterators = batch_size // shards, {}
    for shard in range(shards):
        wanted = np.array([row - shard * size for row in rows if row // size == shard])
        if len(wanted):
            stream = open_shard(shard).batch(size, drop_remainder=True)
            mine = stream if len(wanted) == size else stream.map(partial(_take, wanted))
            prefetched = grain.experimental.ThreadPrefetchIterDataset(mine, prefetch_buffer_size=PREFETCHED)
            iterators[str(shard)] = iter(prefetched)
    return iterators


def _take(rows: np.ndarray, batch: Row) -> Row:
    return {name: value[rows] for name, value in batch.items()}
