"""Stop strings: a row ends where its text says so, whatever the tokens' borders.

The decoder knows tokens alone; `detokenize` says how a row of them reads. Text is looked at between the pieces of a
decoding: after every finished block, or after a few cycles of the modes that settle tokens from left to right.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from edlm_jax.decoding.generation import Generation
from edlm_jax.errors import InputError

Detokenize = Callable[[list[int]], str]


def check_stop(stop: str | Sequence[str], detokenize: Detokenize | None) -> tuple[str, ...]:
    """The stop strings, or an InputError that says what is wrong with them."""
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    if stop and detokenize is None:
        raise InputError("stop strings need detokenize=, a function from token ids to text (a tokenizer's decode)")
    if not all(isinstance(text, str) and text for text in stop):
        raise InputError(f"stop strings must be texts of at least one character, not {list(stop)}")
    return stop


class Reader:
    """The texts of a batch as they grow, and where each was cut."""

    def __init__(self, stop: tuple[str, ...], detokenize: Detokenize, count: int):
        self.stop, self.detokenize = stop, detokenize
        self.cuts: list[tuple[int, str] | None] = [None] * count  # of a stopped row: its tokens and its text

    @property
    def stopped_B(self) -> np.ndarray:
        """bool[B]: the rows in which a stop string was found."""
        return np.array([cut is not None for cut in self.cuts])

    def read(self, generation: Generation) -> Generation:
        """The same with its texts, cut before the first stop string of each row; a cut row stays as it was cut."""
        texts = [self._read_row(row, tokens) for row, tokens in enumerate(generation.tokens)]
        kept = [slice(cut and cut[0]) for cut in self.cuts]
        return replace(
            generation,
            tokens=[tokens[cut] for tokens, cut in zip(generation.tokens, kept, strict=True)],
            accepted_at=[at[cut] for at, cut in zip(generation.accepted_at, kept, strict=True)],
            texts=texts,
        )

    def _read_row(self, row: int, tokens: list[int]) -> str:
        if self.cuts[row] is None:
            text = self.detokenize(tokens)
            found = [position for stop in self.stop if (position := text.find(stop)) >= 0]
            if not found:
                return text
            self.cuts[row] = (self._tokens_before(tokens, min(found)), text[: min(found)])
        return self.cuts[row][1]

    def _tokens_before(self, tokens: list[int], position: int) -> int:
        """How many tokens end before this character: one that holds it is left out, whatever it has before it."""
        count = len(tokens)
        while count and len(self.detokenize(tokens[:count])) > position:
            count -= 1
        return count
