"""Stop strings: a row ends where its text says so, whatever the tokens' borders.

The decoder knows tokens alone; `detokenize` says how a row of them reads. Text is looked at between the pieces of a
decoding: after every finished block, or after a few cycles of the modes that settle tokens from left to right.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edlm_jax.decoding.generation import Generation
from edlm_jax.errors import InputError
from edlm_jax.pretrained.text import Read, Text, read_after

PART = "\ufffd"  # what a character reads as while some of its bytes are missing, or each of those that are there
_BYTES = 3  # the most that such a character has


def check_stop(stop: str | Sequence[str], detokenize: Read | Text | None) -> tuple[str, ...]:
    """The stop strings, or an InputError that says what is wrong with them."""
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    if stop and detokenize is None:
        raise InputError("stop strings need detokenize=, a function from token ids to text (a tokenizer's decode)")
    if not all(isinstance(text, str) and text for text in stop):
        raise InputError(f"stop strings must be texts of at least one character, not {list(stop)}")
    return stop


class Reader:
    """The texts of a batch as they grow behind their prompts, and where each was cut.

    What a person sees has no special tokens, so a stop string that names one is looked for where they are.
    """

    def __init__(self, stop: tuple[str, ...], detokenize: Read | Text, prompts: Sequence[Sequence[int]]):
        text = detokenize if isinstance(detokenize, Text) else None
        self.shown = text.shown if text else detokenize
        hidden = text.special if text else frozenset()
        self.stop = [(s, text.whole if any(token in s for token in hidden) else self.shown) for s in stop]
        self.prompts = prompts
        self.cuts: list[tuple[int, str] | None] = [None] * len(prompts)  # of a stopped row: its tokens and its text

    @property
    def stopped_B(self) -> np.ndarray:
        """bool[B]: the rows in which a stop string was found."""
        return np.array([cut is not None for cut in self.cuts])

    def read(self, generation: Generation) -> Generation:
        """The same with its texts, cut before the first stop string of each row; a cut row stays as it was cut."""
        self.cuts = [cut or self._find(row, generation.tokens[row]) for row, cut in enumerate(self.cuts)]
        kept = [slice(cut and cut[0]) for cut in self.cuts]
        tokens = [tokens[cut] for tokens, cut in zip(generation.tokens, kept, strict=True)]
        return replace(
            generation,
            tokens=tokens,
            accepted_at=[at[cut] for at, cut in zip(generation.accepted_at, kept, strict=True)],
            texts=[cut[1] if cut else self._text(row, tokens[row]) for row, cut in enumerate(self.cuts)],
        )

    def settled(self, generation: Generation, done_B: np.ndarray) -> list[list[int]]:
        """The tokens that no stop string can take back: of a row that goes on, none that may begin one."""
        rows = enumerate(zip(generation.tokens, done_B, strict=True))
        return [tokens if done else tokens[: self._count_settled(row, tokens)] for row, (tokens, done) in rows]

    def _count_settled(self, row: int, tokens: list[int]) -> int:
        count = len(tokens)
        for stop, read in self.stop:
            text = self._text(row, tokens, read).rstrip(PART)
            begun = (n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n]))
            count = min(count, self._tokens_before(row, tokens, len(text) - next(begun, 0), read))
        return count

    def _find(self, row: int, tokens: list[int]) -> tuple[int, str] | None:
        """(tokens before the first stop string, text before it), if there is one."""
        found = []
        for stop, read in self.stop:
            text = self._text(row, tokens, read)
            text = text[: max(len(text.rstrip(PART)), len(text) - _BYTES)]  # their character may be still to come
            if (position := text.find(stop)) >= 0:
                count = self._tokens_before(row, tokens, position, read)
                begun = text[len(self._text(row, tokens[:count], read)) : position]  # of the token that is left out
                found.append((count, self._text(row, tokens[:count]) + begun))
        return min(found, key=lambda cut: (cut[0], len(cut[1])), default=None)

    def _text(self, row: int, tokens: list[int], read: Read | None = None) -> str:
        return read_after(read or self.shown, self.prompts[row], tokens)

    def _tokens_before(self, row: int, tokens: list[int], position: int, read: Read) -> int:
        """How many tokens end before this character: one that holds it is left out, whatever it has before it."""
        count = len(tokens)
        while count and len(self._text(row, tokens[:count], read)) > position:
            count -= 1
        return count
