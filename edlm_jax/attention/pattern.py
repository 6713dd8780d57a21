"""Who may look at whom: the attention patterns of Efficient-DLM (arXiv 2512.14067, section 3) as hashable values.

A pattern answers one question, `allowed(query index, key index)`, and everything else is lowered from that answer: the
dense mask of the tests (`dense`), and the kernels that skip what it forbids (attend.py). Indices are columns of the
row, not RoPE positions, and block b is columns [b*C, (b+1)*C). In the pictures rows are queries, columns keys, `#` may
look and `.` may not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from edlm_jax.errors import InputError, check_range


@dataclass(frozen=True)
class Pattern:
    """The base of all patterns. Every query may look at itself, so that no softmax is empty."""

    pieces = 1  # that a row's columns lie in, see context.py

    def allowed(self, q, k):
        """Elementwise bool: may query column `q` look at key column `k`? (integer arrays that broadcast)"""
        raise NotImplementedError

    def positions(self, length: int) -> np.ndarray:
        """int32[length] RoPE positions of a row that holds one document from its first column on."""
        return self.place(np.arange(length)).astype(np.int32)

    def place(self, column):
        """Elementwise: where in its stream a column stands; in one document places differ as RoPE positions do."""
        return column

    def within(self, window: int | None) -> "Pattern":
        """Where only what is less than `window` positions away is seen; None is as far as can be."""
        return self if window is None else SlidingWindow(self, window)

    def dense(self, q_len: int, k_len: int) -> np.ndarray:
        """bool[q_len, k_len]: the whole mask, for tests, pictures and short sequences."""
        return self.allowed(np.arange(q_len)[:, None], np.arange(k_len)[None, :])


@dataclass(frozen=True)
class Causal(Pattern):
    """Autoregressive: each token looks at itself and what came before.

    # . . .
    # # . .
    # # # .
    # # # #
    """

    def allowed(self, q, k):
        """Key not later than query."""
        return k <= q


@dataclass(frozen=True)
class Bidirectional(Pattern):
    """Everyone looks at everyone (Dream, LLaDA): no KV cache can be exact under it."""

    def allowed(self, q, k):
        """Always."""
        return (q == q) & (k == k)


@dataclass(frozen=True)
class BlockCausal(Pattern):
    """Bidirectional inside a block of `block_length` columns, causal between blocks. `BlockCausal(1)` is `Causal()`.

    # # . .      block_length = 2
    # # . .
    # # # #
    # # # #
    """

    block_length: int

    def __post_init__(self):
        check_range("block_length", self.block_length)

    def allowed(self, q, k):
        """Key's block not later than query's block."""
        return k // self.block_length <= q // self.block_length


# Patterns of one stream, by the name that a prompt's or a text's attention to itself has: block_length -> pattern.
PLAIN: dict[str, Callable[[int], Pattern]] = {
    "causal": lambda block_length: Causal(),
    "block_causal": BlockCausal,
    "bidirectional": lambda block_length: Bidirectional(),
}


@dataclass(frozen=True)
class CleanContext(Pattern):
    """Two streams `[noisy | clean]` of `length` columns each: the training pattern of Efficient-DLM (section 3.2).

    A noisy block looks at itself, both ways, and at the clean blocks strictly before it; never at its own clean block,
    nor at another noisy block. The clean stream is block-causal on itself, or, with `clean="token_causal"` (the
    successor's semi-block, arXiv 2607.05722), an ordinary AR stream. With `noisy="causal"` (MARS, arXiv 2604.07023) a
    noisy column sees of its own block what is not later than itself. RoPE positions run 0..length-1 on both.

    The noisy stream has `noisy_length` columns (default: length). Column j is a noisy copy of clean column j % length:
    2 * length of them are two views, [noisy | noisy | clean]. A `Sight` takes other copies as an array.

          noisy   clean      length = 4, block_length = 2, clean = "block_causal"
        # # . . | . . . .
        # # . . | . . . .
        . . # # | # # . .
        . . # # | # # . .
        --------+--------
        . . . . | # # . .    "token_causal":  # . . .
        . . . . | # # . .                     # # . .
        . . . . | # # # #                     # # # .
        . . . . | # # # #                     # # # #

    Blocks may be noisy in groups of `group` (MultiTF, arXiv 2606.29215): each also sees the blocks of its group before
    it, as noisy as they are, and of the clean stream what lies before the group. Its first two blocks see of the row

        # # . . | . . . .      length = 4, block_length = 2, group = 2
        # # . . | . . . .
        # # # # | . . . .
        # # # # | . . . .
    """

    length: int
    block_length: int
    clean: str = "block_causal"
    noisy_length: int | None = None
    noisy: str = "bidirectional"  # or "causal": inside its block
    group: int = 1  # blocks; from the noisy stream's first column on

    def __post_init__(self):
        check_range("block_length", self.block_length)
        check_range("CleanContext: group", self.group)
        if self.noisy_length and (self.length % self.span or self.noisy_length % self.span):
            of_blocks = f" in groups of {self.group}" * (self.group > 1)
            raise InputError(
                f"CleanContext: block_length={self.block_length}{of_blocks} must divide length={self.length} and "
                f"noisy_length={self.noisy_length}"
            )
        if self.clean not in ("block_causal", "token_causal"):
            raise InputError(f"CleanContext: clean={self.clean!r} is unknown; choose 'block_causal' or 'token_causal'")
        if self.noisy not in ("bidirectional", "causal"):
            raise InputError(f"CleanContext: noisy={self.noisy!r} is unknown; choose 'bidirectional' or 'causal'")

    @property
    def noisy_columns(self) -> int:
        """The length of the noisy stream."""
        return self.noisy_length or self.length

    @property
    def span(self) -> int:
        """Columns of a group."""
        return self.group * self.block_length

    @property
    def noisy_pattern(self) -> Pattern:
        """The pattern of a noisy group on itself."""
        return Causal() if self.noisy == "causal" else BlockCausal(self.block_length)

    @property
    def clean_pattern(self) -> Pattern:
        """The pattern of the clean stream on itself."""
        return Causal() if self.clean == "token_causal" else BlockCausal(self.block_length)

    def allowed(self, q, k, copies=None):
        """By stream of query and key: own noisy block and group, clean blocks before these, clean on clean.

        `copies`: the clean columns that the noisy queries are copies of, where it is not their own place in a view.
        """
        M, S = self.noisy_columns, self.span
        q_noisy, k_noisy, q_clean, k_clean = q < M, k < M, q - M, k - M
        own_group = k_noisy & (q // S == k // S) & self.noisy_pattern.allowed(q, k)
        earlier = ~k_noisy & (k_clean < self.first(q, q % self.length if copies is None else copies))
        from_clean = ~k_noisy & self.clean_pattern.allowed(q_clean, k_clean)
        return (q_noisy & (own_group | earlier)) | (~q_noisy & from_clean)

    def first(self, column, copies):
        """Elementwise: the clean column that a noisy column's group begins with; `copies` is the one it copies."""
        return copies - column % self.span

    def place(self, column):
        """That of the clean column which a noisy one is a copy of."""
        return (column - self.noisy_columns * (column >= self.noisy_columns)) % self.length


@dataclass(frozen=True)
class SlidingWindow(Pattern):
    """Of what `pattern` shows, only what is less than `window` positions away, to either side: some layers' pattern.

    Two streams share their positions: a noisy column sees as far into the clean stream as its clean column does.

    # . . . .      SlidingWindow(Causal(), 3)
    # # . . .
    # # # . .
    . # # # .
    . . # # #
    """

    pattern: Pattern
    window: int

    def allowed(self, q, k):
        """As the pattern says, and near."""
        return self.pattern.allowed(q, k) & (abs(self.place(q) - self.place(k)) < self.window)

    def place(self, column):
        """The pattern's."""
        return self.pattern.place(column)


@dataclass(frozen=True)
class PromptThenBlock(Pattern):
    """A prompt of `length` columns that attends to itself by `prefill`, then one block that sees all of both."""

    length: int
    prefill: Pattern

    def allowed(self, q, k):
        """The block sees everything; the prompt never sees the block."""
        return (q >= self.length) | ((k < self.length) & self.prefill.allowed(q, k))


class Sight(NamedTuple):
    """A pattern over `q_len` query and `k_len` key columns of `batch` rows, with their documents.

    Where segment ids are given a column looks inside its own document alone. Under `CleanContext`, `copies_BM` says
    which clean column each noisy one is a copy of, whole groups of blocks at a time. `seen_TS` are, in all rows, those
    pairs of the pattern that are seen, where that is known only inside the step.
    """

    pattern: Pattern
    batch: int
    q_len: int
    k_len: int
    q_segments_BT: jax.Array | None = None
    k_segments_BS: jax.Array | None = None
    copies_BM: jax.Array | None = None
    seen_TS: jax.Array | None = None

    @property
    def by_row(self) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """(segments of queries, of keys, copies), which devices that share out rows share out; one document if none."""
        if self.q_segments_BT is not None and self.k_segments_BS is not None:
            return self.q_segments_BT.astype(jnp.int32), self.k_segments_BS.astype(jnp.int32), self.copies_BM
        one_BT, one_BS = (jnp.zeros((self.batch, length), jnp.int32) for length in (self.q_len, self.k_len))
        return one_BT, one_BS, self.copies_BM


class Tiles(NamedTuple):
    """The largest tile of scores that is computed at once; a backend's own default is what was measured there."""

    queries: int
    keys: int


def unbounded(pattern: Pattern) -> tuple[Pattern, int | None]:
    """(the pattern without its window, the window or None)"""
    return (pattern.pattern, pattern.window) if isinstance(pattern, SlidingWindow) else (pattern, None)


def same_segment(q_segments_BT, k_segments_BS) -> jnp.ndarray:
    """bool[B, T, S]: the document mask of packed rows. Padding is segment 0 and is seen by padding alone."""
    return q_segments_BT[:, :, None] == k_segments_BS[:, None, :]
