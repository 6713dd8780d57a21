"""Which of several modes decodes the most useful tokens a second while so many rows are live: measured, then computed.

What a forward costs is measured once for each mode and number of rows; how many tokens a row gets from one, as rows
end. A mode of blocks has forwards of two widths: of a block and, as soon as any row commits one beside the next, of
two. With many rows some row always does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_DOUBT = 16  # forwards whose tokens were guessed stand beside those that were seen
_MEMORY = 0.998  # of what was seen, at each row's end: a mode that is never chosen is tried again at last


@dataclass(frozen=True)
class Pace:
    """Seconds of a forward of a mode, by the number of rows: of a plain one, and of one in which some row commits."""

    plain: Mapping[int, float]
    commits: Mapping[int, float]
    block: int  # tokens between two commits of a row; 0: it has none

    def seconds(self, rows: int, tokens: float) -> float:
        """Expected of a forward with so many rows that get so many tokens from each: rows commit at any time."""
        measured = min((n for n in self.plain if n >= rows), default=max(self.plain))
        share = 1 - (1 - min(tokens / self.block, 1)) ** rows if self.block else 0.0
        return (1 - share) * self.plain[measured] + share * self.commits[measured]


def choose(modes: Sequence[int], rows: int, paces: Sequence[Pace], tokens: Sequence[float]) -> int:
    """Of these modes that with the most tokens a second; `tokens` are those of a row's forward."""
    return max(modes, key=lambda mode: tokens[mode] / paces[mode].seconds(rows, tokens[mode]))


class Yields:
    """Tokens of a row's forward by mode, as rows have shown them; before that, half of what one could give at most."""

    def __init__(self, most: Sequence[int]):
        self._guess_M, self._seen_2M = (np.array(most) + 1) / 2, np.zeros((2, len(most)))

    @property
    def means(self) -> list[float]:
        """The estimates."""
        tokens_M, forwards_M = self._seen_2M
        return ((_DOUBT * self._guess_M + tokens_M) / (_DOUBT + forwards_M)).tolist()

    def add(self, mode: int, tokens: int, forwards: int) -> None:
        """What a row of this mode came to."""
        self._seen_2M *= _MEMORY
        self._seen_2M[:, mode] += tokens, forwards
