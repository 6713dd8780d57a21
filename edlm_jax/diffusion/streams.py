"""The layout of a row: which streams of columns it has, who looks at whom, and from which column a token is predicted.

    name            columns            who looks at whom
    causal          [clean]            each at itself and what came before: AR, which no noise is put into
    bidirectional   [noisy]            everyone at everyone
    block_causal    [noisy]            each at its own block and the blocks before it
    clean_context   [noisy | clean]    noisy: own noisy block, clean blocks before it; clean: as block_causal
    semi_block      [noisy | clean]    the same, but the clean stream is an AR stream
    causal_block    [noisy | clean]    the same again, and noisy blocks are causal, too (MARS, I-DLM, Uno)

Shapes: B rows, L tokens of a row, M noisy columns, T all columns, C block length, N blocks, D width.
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from edlm_jax.attention.pattern import PLAIN, CleanContext, Pattern
from edlm_jax.diffusion.noise import Corruption
from edlm_jax.errors import InputError

ALIGNMENTS = ("same_position", "shifted")
Batch = dict[str, jax.Array]


@dataclass(frozen=True)
class Layout:
    """[noisy | clean] or one of the two; `length` is L throughout."""

    noisy: str | None  # how noisy columns look at each other, beside a clean stream inside their block alone
    clean: str | None  # how clean columns do; names are those of `PLAIN`
    block_length: int = 1  # C of the noise, and the grid on which packed documents start
    shifted: bool = True  # a token is predicted one column before its own
    noisy_length: int = 0  # M where blocks with loss share so many columns; 0: `views` copies of each block
    views: int = 1
    group: int = 1  # blocks that are noisy together, each seeing those before it as they are

    @property
    def two_streams(self) -> bool:
        """Is there a clean stream beside the noisy one?"""
        return bool(self.noisy and self.clean)

    @property
    def next_tokens(self) -> bool:
        """Is there a clean stream whose columns do not see their successors?"""
        return self.clean == "causal"

    @property
    def prefill(self) -> str:
        """How a prompt attends to itself in decoding: as training showed it."""
        how = self.clean or self.noisy
        assert how is not None  # a row without streams
        return how

    @property
    def cut(self) -> int | None:
        """Columns that devices which share a row must not divide; None: blocks play no part in who looks at whom."""
        return self.block_length if self.two_streams or self.prefill == "block_causal" else None

    def pattern(self, length: int) -> Pattern:
        """The attention pattern of all columns."""
        if not (self.noisy and self.clean):
            return PLAIN[self.prefill](self.block_length)
        clean = "token_causal" if self.next_tokens else self.clean
        noisy_length = self.noisy_columns(length) if self.noisy_length or self.views > 1 else None
        return CleanContext(length, self.block_length, clean, noisy_length, self.noisy, self.group)

    def noisy_columns(self, length: int) -> int:
        """M; of a row without noise the columns that stand in its place."""
        return self.noisy_length or self.views * length

    def columns(self, length: int) -> int:
        """T."""
        return self.noisy_columns(length) + length * self.two_streams

    def together(self, length: int) -> int:
        """The tokens of a row that are decoded together."""
        return length if self.prefill == "bidirectional" else self.block_length

    def pairs(self, length: int, window: int | None = None) -> int:
        """Query-key pairs of one head, noisy blocks in mid-row; under a window of a block or more, near ones alone."""
        diagonal = 1 if self.next_tokens else self.together(length)
        own = 1 if self.noisy == "causal" else self.block_length
        noisy = self.two_streams * self.noisy_columns(length) * (length + own)
        beyond = max(length - (window or length), 0)  # of a row's positions
        sides = 2 if self.prefill == "bidirectional" else 1
        far = sides * self.columns(length) * beyond * (beyond + 1) // length
        return (length * (length + diagonal) + noisy - far) // 2

    def fewest_tiles(self, n: float) -> float:
        """Of scores, where a stream is n tiles long; a noisy stream beside a clean one adds its own diagonal."""
        triangle = n * (n + 1) / 2
        if self.two_streams:
            return self.views * (triangle + n) + triangle
        return n * n if self.prefill == "bidirectional" else triangle

    def as_decoded(self) -> "Layout":
        """The layout in which a model is measured: one noisy copy of every block, after clean blocks."""
        if self.cut and not self.clean:
            return dataclasses.replace(LAYOUTS["clean_context"], block_length=self.cut, shifted=self.shifted)
        return dataclasses.replace(self, noisy_length=0, views=1, group=1)


LAYOUTS = {
    "causal": Layout(None, "causal"),
    "bidirectional": Layout("bidirectional", None),
    "block_causal": Layout("block_causal", None),
    "clean_context": Layout("bidirectional", "block_causal"),
    "semi_block": Layout("bidirectional", "causal"),
    "causal_block": Layout("causal", "causal"),
}
AUTOREGRESSIVE = LAYOUTS["causal"]
CONVERSIONS = tuple(name for name, layout in LAYOUTS.items() if layout.noisy)  # what a converted model was trained as


def find_layout(name: str, block_length: int = 1, alignment: str = "same_position", noisy_length: int = 0) -> Layout:
    """The layout of a name; AR has neither blocks nor a choice of alignment."""
    layout = LAYOUTS[name]
    if not layout.noisy:
        return layout
    if noisy_length and not layout.clean:
        raise InputError(f"config.objective.noisy_length means nothing under pattern={name!r}: it has one stream")
    shifted = alignment == "shifted"
    return dataclasses.replace(layout, block_length=block_length, shifted=shifted, noisy_length=noisy_length)


class Streams(NamedTuple):
    """A batch and its noise in the columns of a layout."""

    layout: Layout
    batch: Batch
    corruption: Corruption
    found: dict  # what one term has worked out and another may read, of one forward pass

    @property
    def inputs(self) -> dict[str, jax.Array | None]:
        """Tokens, positions, segments and copies as the model takes them."""
        names = ("tokens", "positions", "segment_ids")
        clean = [self.batch[name] for name in names]
        columns = [self.corruption.noisy_BM, *map(self.corruption.copied, clean[1:])]
        if self.layout.two_streams:
            columns = [jnp.concatenate(pair, axis=1) for pair in zip(columns, clean, strict=True)]
        inputs = {f"{name}_BT": x_BT for name, x_BT in zip(names, columns, strict=True)}
        return inputs | dict(copies_BM=self.corruption.copies_BM)

    def clean(self, x_BTD: jax.Array) -> jax.Array:
        """x_BLD of the clean stream, the row's last columns."""
        return x_BTD[:, -self.batch["tokens"].shape[1] :]

    def aligned(self, x_BTD: jax.Array) -> jax.Array:
        """x_BMD: what each noisy column's token is predicted from.

        Shifted, that is the column before it, and for the first of a block, as in decoding, the clean token before the
        block; of blocks in a group, for the first of the group.
        """
        layout, (B, M) = self.layout, self.corruption.noisy_BM.shape
        if not layout.shifted:
            return x_BTD[:, :M]
        if not layout.two_streams:
            return shift_right(x_BTD)
        columns_BL = jnp.broadcast_to(jnp.arange(x_BTD.shape[1] - M), (B, x_BTD.shape[1] - M))
        span = layout.group * layout.block_length
        firsts_BN = self.corruption.copied(columns_BL)[:, ::span]
        # In float32, or what all copies of a block send back to one column would be added up rounded.
        clean_BLD, before_BN1 = x_BTD[:, M:].astype(jnp.float32), jnp.maximum(firsts_BN - 1, 0)[:, :, None]
        before_BND = jnp.take_along_axis(clean_BLD, before_BN1, axis=1).astype(x_BTD.dtype)
        own_BNCD = x_BTD[:, :M].reshape(*firsts_BN.shape, span, -1)
        return jnp.concatenate([before_BND[:, :, None], own_BNCD[:, :, :-1]], axis=2).reshape(B, M, -1)

    def predicted(self, wanted_BM: jax.Array) -> jax.Array:
        """Those of the wanted tokens that have a logit: shifted, the first token of a document has none before it."""
        return wanted_BM & self.has_predecessor if self.layout.shifted else wanted_BM

    @property
    def has_predecessor(self) -> jax.Array:
        """bool[B, M]: is there a token of the same document before it?"""
        segments_BL = self.batch["segment_ids"]
        before_BL = jnp.pad(segments_BL[:, :-1], ((0, 0), (1, 0)))
        return self.corruption.copied(segments_BL == before_BL)

    @property
    def next_tokens(self) -> tuple[jax.Array, jax.Array]:
        """(targets, mask) of the clean stream."""
        return next_token_targets(*(self.batch[name] for name in ("tokens", "loss_mask", "segment_ids")))

    @property
    def targets_BM(self) -> jax.Array:
        """The tokens of the noisy columns as they are without noise."""
        return self.corruption.copied(self.batch["tokens"])


def learnable(batch: Batch) -> jax.Array:
    """bool[B, L]: tokens that carry loss; nothing else is ever noise."""
    return (batch["loss_mask"] > 0) & (batch["segment_ids"] > 0)


def next_token_targets(tokens_BL, loss_mask_BL, segment_ids_BL):
    """(targets, mask) with position i predicting token i + 1 of the same document, where that token carries loss."""
    targets_BL = jnp.roll(tokens_BL, -1, axis=1)
    same_BL = segment_ids_BL == jnp.roll(segment_ids_BL, -1, axis=1)
    inside_L = jnp.arange(tokens_BL.shape[1]) < tokens_BL.shape[1] - 1
    return targets_BL, jnp.roll(loss_mask_BL, -1, axis=1).astype(bool) & same_BL & inside_L[None]


def shift_right(logits_BLV):
    """Shifted alignment (Dream): logit i - 1 predicts token i. Position 0 has nothing before it and keeps its own."""
    return jnp.concatenate([logits_BLV[:, :1], logits_BLV[:, :-1]], axis=1)
