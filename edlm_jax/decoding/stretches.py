"""The caches of a lane's rows where attention reads no tables of pages: each row's is one stretch of memory.

A prompt is prefilled in a cache of one row, which is then copied to those of the others. Such caches are kept, and a
prompt that begins as one of them does, by whole blocks, is prefilled from there on alone. In pages every layer of every
step would gather a row's pages into such a stretch first: a copy of the cache a step, where the copy here is one a
request.
"""

from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext

import jax
import jax.numpy as jnp
import numpy as np

from edlm_jax.decoding.compiled import compiled
from edlm_jax.decoding.requests import Row
from edlm_jax.models.cache import DecodingWeights
from edlm_jax.models.kv_cache import KVCache

_KEPT = 4  # caches of prompts that others may begin as


class Stretches:
    """The caches of one lane's rows, of so many columns each, with the methods of `Pages`.

    A prompt's last `unit` columns are always prefilled; `least` columns are worth going on from.
    """

    def __init__(self, weights: DecodingWeights, *, columns: int, unit: int, least: int):
        self.weights, self.columns, self.unit, self.least = weights, columns, unit, least
        self._rows: KVCache | None = None
        # Caches of one row, and the prompts that they hold; the last one is prefilled, or was.
        self._kept: list[tuple[KVCache | None, Row | None]] = [(None, None)] * _KEPT
        self._row: Row | None = None  # whose prefill that is

    def begin(self, slot: Hashable, row: Row) -> int | None:
        """The columns of its prompt that a row has already."""
        index, known = self._nearest(row)
        cache, _ = self._kept.pop(index)
        if cache is None:
            empty = KVCache.empty(self.weights.spec, 1, self.columns, self.weights.dtype)
            cache = jax.tree.map(jnp.zeros_like, empty)  # each layer's its own, or none could be given away
        self._kept.append((cache, None))
        self._row = row
        return known

    def lend(self, slot: Hashable) -> KVCache:
        """The cache of a row that is prefilled."""
        return self._kept[-1][0]

    def take_back(self, cache: KVCache) -> None:
        """What became of it."""
        self._kept[-1] = cache, None

    def put(self, slot: Hashable, index: int, rows: int) -> None:
        """A row is prefilled, and is that of this index among so many."""
        cache, _ = self._kept.pop()
        self._kept.append((cache, self._row))
        if self._rows is None:
            self._rows = take_rows(cache, np.zeros(rows, np.int32))
        self._rows = put_row(self._rows, cache, np.int32(index))

    def rows(self, slots: Sequence[Hashable | None]) -> KVCache:
        """The cache of all rows."""
        return self._rows

    def keep(self, cache: KVCache) -> None:
        """What became of it."""
        self._rows = cache

    def resize(self, index: np.ndarray) -> None:
        """The rows at these indices alone."""
        self._rows = take_rows(self._rows, index)

    def drop(self, slot: Hashable) -> None:
        """Its memory is that of its place."""

    def rehearsal(self) -> AbstractContextManager[None]:
        """Rows are like any others."""
        return nullcontext()

    def _nearest(self, row: Row) -> tuple[int, int]:
        """(which cache holds most of this prompt, else the oldest; so many columns of it), the last unit apart."""
        best = 0, 0
        for index, (_, kept) in enumerate(self._kept):
            if kept is not None and kept.pad == row.pad:
                most = min(kept.start, row.start - self.unit)
                same = kept.tokens_1X[0, :most] == row.tokens_1X[0, :most]
                shared = (most if same.all() else int(np.argmin(same))) // self.unit * self.unit
                if shared - row.pad >= self.least and shared > best[1]:
                    best = index, shared
        return best


@compiled()
def take_rows(rows, index):
    """The rows at these indices."""
    return jax.tree.map(lambda x: x[index], rows)


@compiled(donate_argnames="rows")
def put_row(rows, row, index):
    """All rows, with this one in its place."""
    return jax.tree.map(lambda all_rows, x: jax.lax.dynamic_update_index_in_dim(all_rows, x[0], index, 0), rows, row)
