"""Documents that are left out or cut: each counted once, however many epochs meet it, and the first of them named."""

import math
import threading
from collections import Counter
from collections.abc import Sequence

import numpy as np
from absl import logging

from edlm_jax.errors import InputError

SKIPPED = "skipped"  # the kind that has a limit
MAX_SKIPPED = 0.01  # the share of a source's documents that may be unusable, where no config says another
_NAMED = 10  # documents of a source that are named in the log; the others are counted


class Tally:
    """What became of the documents of one source, of which `unread` were left out at once; threads may share it."""

    def __init__(self, name: str, size: int, max_skipped: float = MAX_SKIPPED, unread: int = 0):
        self.name, self.size, self.max_skipped, self.unread = name, size, max_skipped, unread
        self.counts: dict[str, int] = {SKIPPED: unread} if unread else {}  # of documents, by kind
        self.first = f"{unread:,} are not UTF-8" if unread else ""  # why the first ones were skipped
        self._met: dict[str, np.ndarray] = {}  # of each kind which documents
        self.looked_at = self.tokens = 0  # before the first step: documents, and what is kept of them
        self._lock = threading.Lock()
        self._check(unread, size + unread)

    def __str__(self) -> str:
        """As a run says it: 3,000 documents, 120,000 tokens, 2 skipped, 1 blank."""
        counts = [f"{n:,} {kind.replace('_', ' ')}" for kind, n in sorted(self.counts.items())]
        if self.looked_at in (0, self.size):
            tokens = [f"{self.tokens:,} tokens"] if self.looked_at else []
            return ", ".join([f"{self.size:,} documents", *tokens, *counts])
        about = f"{self.size:,} documents, about {round(self.tokens * self.size / self.looked_at):,} tokens"
        return f"{about}; of {self.looked_at:,} looked at {', '.join(counts)}" if counts else about

    def count(self, kind: str, index: int) -> bool:
        """Counts a document; False if it was counted before."""
        with self._lock:
            met = self._met.setdefault(kind, np.zeros(self.size, bool))
            new = not met[index]
            met[index] = True
            self.counts[kind] = self.counts.get(kind, 0) + new
            return new

    def skip(self, index: int, reason: str) -> None:
        """A document that cannot be used, named; raises InputError once there are too many of them."""
        if not self.count(SKIPPED, index):
            return
        self.first, count = self.first or reason, self.counts[SKIPPED]
        if count <= _NAMED:
            logging.warning("skipped %s%s", reason, "; further ones are counted alone" if count == _NAMED else "")
        self._check(count, self.size + self.unread)

    def check(self, looked_at: int) -> None:
        """Raises InputError if too many of so many documents that were looked at cannot be used."""
        self._check(self.counts.get(SKIPPED, 0) - self.unread, looked_at)

    def _check(self, skipped: int, of: int) -> None:
        if skipped > math.ceil(self.max_skipped * of):
            raise InputError(
                f"{skipped:,} of {of:,} documents of {self.name} cannot be used, more than data.max_skipped="
                f"{self.max_skipped:g} allows; the first: {self.first}"
            )


def totals(tallies: Sequence[Tally]) -> dict[str, int]:
    """The counts of all sources, by kind; `skipped` always."""
    return {SKIPPED: 0} | dict(sum((Counter(tally.counts) for tally in tallies), Counter()))
