"""From sources to batches: shuffled, sharded, packed, mixed by weight, and resumable exactly.

    source -> shuffle -> repeat -> shard -> tokenise, cut, align -> pack --+
    source -> ...                                                         --+- mix rows by weight -> batch -> prefetch

A source's weight is its share of rows, hence of tokens up to padding, however long its documents are. Each epoch has
an order of its own, of which shard s takes the documents s, s + shards, ...: within an epoch no two share one. Shards
belong to the batch and not to processes (shards.py): a step's batch follows from config, seed and step alone.
`get_state()` of the batches is a small dict of numbers; `set_state` of it gives bitwise the same ones from there on, in
any process.

What cannot be used is left out and counted (tokenized.py). The counts are no part of the state and change no batch: a
run that goes on counts again what it meets.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from edlm_jax.data.packing import FILLER, Grid, Row, align_document, pack_documents, padding_row, what_is_lost
from edlm_jax.data.shards import BatchIterator, open_shards
from edlm_jax.data.tokenized import Tokenized
from edlm_jax.errors import InputError, check_range

WITH_MASK_TOKEN = "with_mask_token"  # documents whose text holds what hides tokens
MAX_PER_ROW = {"first_fit": None, "one_per_row": 1}
# What is looked at before the first step: all of a small corpus, of a larger one a sample, and no more tokens than
# these. The numbers are the same in every process.
ALL, SAMPLE, TOKENS = 4096, 512, 2**19
SMALL = 4096  # documents, below which an order of our own is drawn


@dataclass(frozen=True)
class Data:
    """config.data, which says what its fields mean, and the grid that its rows keep to."""

    batch_size: int
    length: int
    block_length: int = 1
    grid: str = "response"  # where blocks are counted from
    seed: int = 0  # of the order of the documents
    sources: Sequence[Mapping[str, Any]] = ()
    eval_sources: Sequence[Mapping[str, Any]] = ()
    eval_batches: int = 16
    shards: int = 1
    packing: str = "first_fit"
    shuffle: bool = True
    max_skipped: float = 0.01


class Pieces(Tokenized):
    """A source's documents as aligned pieces, of one document however many; None where nothing of it is left."""

    def __init__(self, spec: Mapping[str, Any], tokenizer, data: Data, grid: Grid, mask_id: int | None):
        super().__init__(spec, tokenizer, data.max_skipped)
        self.spec, self.data, self.grid, self.mask_id = dict(spec), data, grid, mask_id
        self.weight = weight = self.spec.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise InputError(f"a source's weight must be a positive number, not {weight!r}")

    def __getitem__(self, index: int) -> list[np.ndarray] | None:
        found = []
        for tokens in super().__getitem__(index):
            pieces = align_document(tokens, self.grid)
            if lost := what_is_lost(tokens, pieces, self.grid):
                self.tally.count(lost, index)
            if self.mask_id is not None and (tokens[0] == self.mask_id).any():
                self.tally.count(WITH_MASK_TOKEN, index)
            found += pieces
        return found or None

    def pack(self, documents: grain.MapDataset, seed: int) -> grain.IterDataset:
        """Rows of documents of this source, in their order."""
        # Our sources are in memory or a seek away: threads here would only wait for each other.
        one_by_one = documents.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        pieces = grain.experimental.FlatMapIterDataset(one_by_one, CutDocuments())
        return pack_documents(pieces, self.grid, seed=seed, max_per_row=MAX_PER_ROW[self.data.packing])

    def look_through(self) -> None:
        """Counts what a run would meet, as far as that is cheap; refuses nothing to learn, or too much of no use."""
        size, tally = len(self), self.tally
        for index in range(size) if size <= ALL else range(0, size, size // SAMPLE):
            for piece_L3 in self[index] or ():
                tally.tokens += int(((piece_L3[:, 1] != FILLER) & (piece_L3[:, 2] >= 0)).sum())
            tally.looked_at += 1
            if tally.tokens >= TOKENS:
                break
        tally.check(tally.looked_at)
        # Without this a corpus of nothing but unusable documents would be searched for ever.
        if not tally.tokens and not any(self):
            reason = f"; {tally.first}" if tally.first else ""
            raise InputError(f"no document of {self.spec} has anything to learn in {self.grid.length} tokens{reason}")

    def check_shards(self) -> None:
        """In one order for ever a shard meets the same documents in each epoch: it must find something among them."""
        every = math.gcd(len(self), self.data.shards)
        for first in range(every):
            if not any(self[index] for index in range(first, len(self), every)):
                raise InputError(
                    f"config.data.shuffle=False: of {self.spec} one of config.data.shards={self.data.shards} meets "
                    f"document {first} and each {every} further alone, none of which has anything to learn; shuffle, "
                    "or take fewer shards"
                )


class CutDocuments(grain.experimental.FlatMapTransform):
    """A document's pieces one by one: they were cut when it was tokenised."""

    def flat_map(self, pieces: list) -> list:
        return pieces


class EvalBatches:
    """The held-out batches, the same as often as they are iterated over; of each the rows `rows` (None: all).

    Each document once, until the first source ends or eval_batches are made; the last one may be filled with padding.
    Each process packs the whole set, so that all of them see the same number of batches. `tallies` count what became of
    the documents.
    """

    def __init__(self, data: Data, tokenizer, *, rows: Sequence[int] | None = None, mask_id: int | None = None):
        self._data, self._rows = data, range(data.batch_size) if rows is None else rows
        self._sources = open_sources(data.eval_sources, data, tokenizer, mask_id)
        self.tallies = [source.tally for source in self._sources]

    def __iter__(self) -> Iterator[Row]:
        size, padding = self._data.batch_size, padding_row(self._sources[0].grid)
        packed = [source.pack(shuffle(grain.MapDataset.source(source), 0), 0) for source in self._sources]
        mixed = iter(_mix(packed, self._sources))
        for _ in range(self._data.eval_batches):
            if not (batch := list(itertools.islice(mixed, size))):
                return
            batch += [padding] * (size - len(batch))
            yield {name: np.stack([batch[row][name] for row in self._rows]) for name in padding}


def make_dataset(
    data: Data, tokenizer, *, rows: Sequence[int] | None = None, mask_id: int | None = None
) -> BatchIterator:
    """The training batches, without end; of each batch the rows `rows` (None: all), in ascending order."""
    sources = open_sources(data.sources, data, tokenizer, mask_id)
    for source in () if data.shuffle else sources:
        source.check_shards()

    def open_shard(shard: int) -> grain.IterDataset:
        packed = []
        for number, source in enumerate(sources):
            # Every source has an order of its own; all of them follow from the seed.
            order_seed, row_seed = (int(s) for s in np.random.SeedSequence([data.seed, number]).generate_state(2))
            documents = grain.MapDataset.source(source)
            if data.shuffle:
                documents = shuffle(documents, order_seed)
            packed.append(source.pack(documents.repeat()[shard :: data.shards], row_seed))
        return _mix(packed, sources)

    shards = open_shards(open_shard, data.shards, data.batch_size, range(data.batch_size) if rows is None else rows)
    return BatchIterator(shards, [source.tally for source in sources])


def open_sources(specs: Sequence[Mapping[str, Any]], data: Data, tokenizer, mask_id: int | None) -> list[Pieces]:
    """Every source opened, and seen to hold at least one document to learn from, and not too many of no use."""
    grid = _make_grid(data, tokenizer)
    if not specs:
        raise InputError("no data: config.data.sources is empty")
    sources = [Pieces(spec, tokenizer, data, grid, mask_id) for spec in specs]
    for source in sources:
        source.look_through()
    return sources


class SmallShuffle(grain.MapDataset):
    """A permutation per epoch of a corpus of few documents.

    Grain's own shuffle draws from at least 65536 places until it hits one of the corpus: measured, 17 ms for each
    document of a corpus of two, 1.3 ms for one of forty, 0.02 ms from four thousand on.
    """

    def __init__(self, parent: grain.MapDataset, seed: int):
        super().__init__(parent)
        draw = lambda epoch: np.random.default_rng([seed, epoch]).permutation(len(parent))  # noqa: E731
        self._order = functools.lru_cache(maxsize=2)(draw)  # iterators may be in two epochs

    def __len__(self) -> int:
        return len(self.parents[0])

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        epoch, place = divmod(index, len(self))
        return self.parents[0][int(self._order(epoch)[place])]


def shuffle(documents: grain.MapDataset, seed: int) -> grain.MapDataset:
    """The documents in an order that depends on the seed and, once they are repeated, on the epoch."""
    return SmallShuffle(documents, seed) if len(documents) < SMALL else documents.shuffle(seed=seed)


def _mix(packed: list[grain.IterDataset], sources: list[Pieces]) -> grain.IterDataset:
    return grain.IterDataset.mix(packed, [source.weight for source in sources]) if len(packed) > 1 else packed[0]


def _make_grid(data: Data, tokenizer) -> Grid:
    check_range("block_length", data.block_length)
    if data.length < 1 or data.length % data.block_length:
        raise InputError(f"length {data.length} is not a positive multiple of block_length {data.block_length}")
    if data.shards < 1 or data.batch_size < 1 or data.batch_size % data.shards:
        raise InputError(f"batch_size {data.batch_size} is not a positive multiple of shards {data.shards}")
    if data.packing not in MAX_PER_ROW:
        raise InputError(f"unknown packing {data.packing!r}; known: {', '.join(MAX_PER_ROW)}")
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end-of-sequence token; set eos_token in its tokenizer_config.json")
    return Grid(data.length, data.block_length, tokenizer.eos_token_id, data.grid)
