"""Documents that are left out or cut: each counted once, however many epochs meet it, and the first of them named.

    tally = Tally("chats.jsonl", size=3000, max_skipped=0.01)
    tally.skip(2499, "chats.jsonl:2500: the conversation has no assistant message")       counts, names, may be an error
    tally.count("cut", 7)                                                                  counts; True the first time
    tally.counts                                                                           {"skipped": 1, "cut": 1}

Counts are no part of the data's state: a run that goes on counts again what it meets.
"""

import math
import threading

import numpy as np
from absl import logging

from edlm_jax.errors import InputError

SKIPPED = "skipped"  # the kind that has a limit
MAX_SKIPPED = 0.01  # the share of a source's documents that may be unusable, where no config says another
_NAMED = 10  # documents of a source that are named in the log; the others are counted


class UnusableDocument(InputError):
    """Nothing can be learned from a document, and why; which one it is knows whoever read it."""


class Tally:
    """What became of the documents of one source; threads may share it."""

    def __init__(self, name: str, size: int, max_skipped: float = MAX_SKIPPED):
        self.name, self.size, self.max_skipped = name, size, max_skipped
        self.counts: dict[str, int] = {}  # of documents, by kind
        self.first: str | None = None  # why the first one was skipped
        self._met: dict[str, np.ndarray] = {}  # of each kind which documents
        self._lock = threading.Lock()

    def count(self, kind: str, index: int) -> bool:
        """Counts a document; False if it was counted before."""
        with self._lock:
            met = self._met.setdefault(kind, np.zeros(self.size, bool))
            new = not met[index]
            met[index] = True
            self.counts[kind] = self.counts.get(kind, 0) + new
            return new

    def skip(self, index: int, reason: str) -> None:
        """A document that cannot be used; raises InputError once there are too many of them."""
        if not self.count(SKIPPED, index):
            return
        self.first, count = self.first or reason, self.counts[SKIPPED]
        if count <= _NAMED:
            logging.warning("skipped %s%s", reason, "; further ones are counted alone" if count == _NAMED else "")
        self.check(self.size)

    def check(self, looked_at: int) -> None:
        """Raises InputError if too many of so many documents were skipped."""
        skipped = self.counts.get(SKIPPED, 0)
        if skipped > math.ceil(self.max_skipped * looked_at):
            raise InputError(
                f"{skipped:,} of {looked_at:,} documents of {self.name} cannot be used, more than data.max_skipped="
                f"{self.max_skipped:g} of them; the first: {self.first}"
            )


def total(tallies: list[Tally]) -> dict[str, int]:
    """The counts of all sources, by kind; `skipped` always."""
    kinds = dict.fromkeys([SKIPPED, *(kind for tally in tallies for kind in tally.counts)])
    return {kind: sum(tally.counts.get(kind, 0) for tally in tallies) for kind in kinds}
