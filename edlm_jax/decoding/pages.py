"""The cache of an engine's rows in pages, for backends whose attention reads tables of pages.

A row has pages for its prompt and for all that it may come to be, from its first token on, until it ends: none is ever
stuck half-way. A row for which too few are free waits, and gets its pages before any that asks after it. Whole pages of
a prompt that no row can ever write again are known by what they hold, and rows that begin alike have them in common:

    a b c d | e f g h | i j k l | m - - -       pages of four columns; blocks of two; the last block, l m, is written
    a b c d | e f g h | o p q r | s - - -       by its own row alone: its page, and those behind, are the row's own

What a page holds follows from its tokens, those before them, the padding before these and the prefill's pattern: that
is its key, whatever mode it is for. Some such pages are kept after their rows end, until they are needed: the one that
was left longest ago goes first, and of one row the last, for without what is before it none is found. Few, for pages
that were written of late lie in a processor's cache: free ones, too, are taken by who comes next after they were left.
"""

import functools
import hashlib
import itertools
import math
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from edlm_jax.attention import Pattern
from edlm_jax.decoding.modes import Mode
from edlm_jax.decoding.requests import Row
from edlm_jax.errors import InputError
from edlm_jax.models.cache import DecodingWeights
from edlm_jax.models.kv_cache import KVCache

_AT_ONCE, _LEAST = 16, 64  # columns that kernels take at a time, and of a page: with few, streams of reads are short
_KEPT = 4  # rows: as many pages are kept for others, and are there beside those of all rows


class Pool:
    """The pages of one program's rows, of all its modes: who has them, and which are known.

    `columns` are those of all together; default: enough for all rows at once, whatever they are, and a few kept ones.
    """

    def __init__(self, weights: DecodingWeights, modes: Sequence[Mode], columns: int | None = None):
        unit = math.lcm(_AT_ONCE, *(mode.unit for mode in modes))  # each mode's blocks fill pages
        self.weights, self.page, self.fixed = weights, -(-_LEAST // unit) * unit, columns is not None
        self.shared = 0  # pages of prompts that were there already, so far
        self.users: list[int] = []  # of each page
        self.free: deque[int] = deque()
        self.kept: OrderedDict[int, None] = OrderedDict()  # nobody's, but known
        self._page: dict[bytes, int] = {}  # by key
        self._key: dict[int, bytes] = {}
        self._most_kept = 0
        self._first: Hashable | None = None  # who lacked pages, and gets them first
        self._grow((columns or 0) // self.page)

    @property
    def pages(self) -> int:
        """All of them."""
        return len(self.users)

    @property
    def used(self) -> int:
        """Pages of rows."""
        return self.pages - len(self.free) - len(self.kept)

    @functools.cached_property
    def cache(self) -> KVCache:
        empty = KVCache.empty(self.weights.spec, self.pages, self.page, self.weights.dtype)
        return jax.tree.map(jnp.zeros_like, empty)  # each layer's its own, or none could be given away

    def open(self, rows: int, pages: int) -> None:
        """Before its first use: a mode has so many rows of at most so many pages."""
        self._most_kept = max(self._most_kept, _KEPT * pages)
        if not self.fixed:
            self._grow((rows + _KEPT) * pages)
        elif pages > self.pages:
            least, given = pages * self.page, self.pages * self.page
            reason = f"a row may need {least} columns of cache, and those of a program have {given} together"
            raise InputError(f"{reason}; give all programs more, or fewer columns a slot")

    def take(self, slot: Hashable, keys: Sequence[bytes], count: int) -> tuple[list[int], int] | None:
        """(so many pages, how many of them are those of the first keys); None: it has to wait."""
        known = [self._page[key] for key in itertools.takewhile(self._page.__contains__, keys)]
        spare = len(self.free) + len(self.kept) - sum(page in self.kept for page in known)
        if self._first not in (None, slot) or count - len(known) > spare:
            self._first = slot if self._first is None else self._first
            return None
        self._first = None
        for page in known:
            self.kept.pop(page, None)
        pages = known + [self._next() for _ in range(count - len(known))]
        for page in pages:
            self.users[page] += 1
        self.shared += len(known)
        return pages, len(known)

    def know(self, keys: Sequence[bytes], pages: Sequence[int]) -> None:
        """These pages hold what their keys say, and nobody writes them again."""
        for key, page in zip(keys, pages, strict=True):
            if key not in self._page and page not in self._key:
                self._page[key], self._key[page] = page, key

    def leave(self, pages: Sequence[int]) -> None:
        """A row has these no more."""
        for page in reversed(pages):
            self.users[page] -= 1
            if not self.users[page]:
                if page in self._key:
                    self.kept[page] = None
                else:
                    self.free.append(page)
        self.trim(self._most_kept)

    def forget(self, slot: Hashable) -> None:
        """It waits no more."""
        if self._first == slot:
            self._first = None

    def trim(self, most: int) -> None:
        """Keeps no more pages than so many."""
        while len(self.kept) > most:
            self.free.append(self._oldest())

    def _next(self) -> int:
        return self.free.pop() if self.free else self._oldest()

    def _oldest(self) -> int:
        page, _ = self.kept.popitem(last=False)
        del self._page[self._key.pop(page)]
        return page

    def _grow(self, pages: int) -> None:
        self.free.extend(range(self.pages, pages))
        self.users += [0] * (pages - self.pages)


class Pages:
    """The caches of one lane's rows, in a pool.

    `columns` are those that a program computes with, and the most that a prompt and its new tokens have. A row may
    write so many `beyond` its last token, and of its prompt the last `unit` again. `pattern` is the prefill's; None: it
    can't go on from what other rows have.
    """

    def __init__(
        self, pool: Pool, *, rows: int, columns: tuple[int, int], beyond: int, unit: int, pattern: Pattern | None
    ):
        self.pool, self.beyond, self.unit, self.pattern = pool, beyond, unit, pattern
        self.most = -(-columns[0] // pool.page)  # pages of a row's table
        pool.open(rows, min(self.most, -(-(columns[1] + beyond) // pool.page) + 1))
        # By slot: its table, pages and keys; None is nobody.
        self._held: dict[Hashable, tuple] = {None: (np.full(self.most, -1, np.int32), [], [])}
        self._rehearsed: Iterator[int] | None = None

    def begin(self, slot: Hashable, row: Row) -> int | None:
        """The columns of its prompt that a row has already; None: it has to wait."""
        P, limit = self.pool.page, int(row.request.limit_B1[0, 0])
        first, stop = row.pad // P, min(-(-(row.start + limit + self.beyond) // P), self.most)
        table_G = self._held[None][0].copy()
        if self._rehearsed:
            table_G[first:stop] = list(itertools.islice(self._rehearsed, stop - first))
            self._held[slot] = table_G, [], []
            return 0
        keys = self._prompt_keys(row)
        if (taken := self.pool.take(slot, keys, stop - first)) is None:
            return None
        pages, known = taken
        table_G[first:stop] = pages
        self._held[slot] = table_G, pages, keys
        return (first + known) * P if known else 0

    def lend(self, slot: Hashable) -> KVCache:
        """The cache of a row that is prefilled."""
        return self.rows([slot])

    def keep(self, cache: KVCache) -> None:
        """What became of it, or of one that was lent."""
        self.pool.cache = replace(cache, table_BG=None)

    take_back = keep

    def put(self, slot: Hashable, index: int, rows: int) -> None:
        """A row is prefilled: others may begin as it does."""
        _, pages, keys = self._held[slot]
        self.pool.know(keys, pages[: len(keys)])

    def rows(self, slots: Sequence[Hashable | None]) -> KVCache:
        """The cache of all rows; None is nobody's."""
        return replace(self.pool.cache, table_BG=np.stack([self._held[slot][0] for slot in slots]))

    def resize(self, index: np.ndarray) -> None:
        """The rows at these indices alone; nothing moves, for pages are a slot's."""

    def drop(self, slot: Hashable) -> None:
        """Forgets a row, or one that waits."""
        self.pool.forget(slot)
        _, pages, _ = self._held.pop(slot, (None, [], []))
        self.pool.leave(pages)

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Rows have any pages meanwhile, some perhaps the same, while there are no others: there are always enough."""
        self.pool.trim(0)  # any page may be written to: none is known any more
        self._rehearsed = itertools.cycle(range(self.pool.pages))
        yield
        self._rehearsed = None

    def _prompt_keys(self, row: Row) -> list[bytes]:
        """Of the pages of a prompt that no row will write again, from the first on that holds any of it."""
        P, keys = self.pool.page, []
        if self.pattern is None:
            return keys
        key = f"{self.pattern} {row.pad}".encode()
        for page in range(row.pad // P, (row.start - self.unit) // P):
            key = hashlib.sha256(key + row.tokens_1X[0, page * P : (page + 1) * P].tobytes()).digest()
            keys.append(key)
        return keys
