"""Documents become rows of one length: cut, aligned to the block grid, packed first-fit.

With block length 4 (p prompt, r response, t text, e end, . padding; a row of 24):

    tokens       . p p p  r r r e  t t t t  t t e e  p p p p  r e e e
    segment_ids  0 1 1 1  1 1 1 1  2 2 2 2  2 2 2 2  3 3 3 3  3 3 3 3
    positions    0 0 1 2  3 4 5 6  0 1 2 3  4 5 6 7  0 1 2 3  4 5 6 7
    loss_mask    0 0 0 0  1 1 1 1  1 1 1 1  1 1 2 2  0 0 0 0  1 1 1 1

- A document starts on a block boundary. One that begins with a prompt is padded on its left, so that its response does,
  as the decoder's grid starts at the prompt's end. Where the decoder counts blocks from position 0, nothing is padded.
- Its last block is filled with end tokens that carry loss. The decoder always appends whole blocks of masks: a model
  that had only seen the masks of real tokens would be told by their number where the answer ends. The loss mask is 2
  there: they are learned, but no tokens of the document (see `without_filler`).
- A document longer than the row is cut: plain text into rows of its own, each a document from position 0; one with a
  prompt loses what does not fit, because the rest means nothing without the prompt.
"""

import dataclasses
import functools

import grain
import numpy as np

from edlm_jax.data.documents import Tokens

# A window of rows is filled before the first of them is handed on. A wider one wastes less padding and mixes more
# documents; a resumed run has to tokenise it again (well under a second).
WINDOW_TOKENS = 2**16
MIN_WINDOW_ROWS = 32
FILLER = 2  # in the loss mask
# What becomes of documents that are not trained on as they are.
TOO_LONG = "too_long"  # the prompt fills the row: nothing of it is left
CUT = "cut"  # the answer loses what does not fit, and its end with it
SPLIT = "split"  # text of more than a row is several documents
NOTHING_LEARNED = "without_loss"  # a pre-tokenised one in which all is given
Row = dict[str, np.ndarray]  # tokens, segment_ids, positions, loss_mask; of a batch the same, stacked


@dataclasses.dataclass(frozen=True)
class Grid:
    """The shape of a row and what fills the last block of a document."""

    length: int
    block_length: int
    end_id: int
    counted_from: str = "response"  # "position": a document's blocks begin at its first token, prompt or not


def align_document(tokens: Tokens, grid: Grid) -> list[np.ndarray]:
    """The pieces of one document, each starting on a block boundary and filling its last block; none without loss.

    A piece is an int32 array [length, 3] of token, loss mask and position. The position is -1 on the padding to the
    left of a prompt, so that it can be told from the document once packed.
    """
    tokens_L, loss_mask_L = tokens
    if not loss_mask_L.any():
        return []
    left = -int(loss_mask_L.argmax()) % grid.block_length if grid.counted_from == "response" else 0
    starts = range(0, len(tokens_L), grid.length) if loss_mask_L[0] else [0]
    cuts = [slice(start, start + grid.length - left) for start in starts]
    return [_align_piece(tokens_L[cut], loss_mask_L[cut], left, grid) for cut in cuts if loss_mask_L[cut].any()]


def what_is_lost(tokens: Tokens, pieces: list[np.ndarray], grid: Grid) -> str | None:
    """The kind of loss between a document and its pieces, by which it is counted."""
    tokens_L, loss_mask_L = tokens
    if not pieces:
        return TOO_LONG if loss_mask_L.any() else NOTHING_LEARNED
    if len(pieces) > 1:
        return SPLIT
    left = int((pieces[0][:, 2] < 0).sum())
    return CUT if left + len(tokens_L) > grid.length else None


def _align_piece(tokens_L: np.ndarray, loss_mask_L: np.ndarray, left: int, grid: Grid) -> np.ndarray:
    used = left + len(tokens_L)
    piece_L3 = np.empty((used + -used % grid.block_length, 3), np.int32)
    # A document that ends with something given (a pre-tokenised one may) is filled with something given.
    piece_L3[:, 0], piece_L3[:, 1] = grid.end_id, FILLER * loss_mask_L[-1]
    piece_L3[left:used, 0], piece_L3[left:used, 1] = tokens_L, loss_mask_L
    piece_L3[:left, 1], piece_L3[:left, 2] = 0, -1
    piece_L3[left:, 2] = np.arange(len(piece_L3) - left)
    return piece_L3


def pack_documents(
    pieces: grain.IterDataset, grid: Grid, *, seed: int, max_per_row: int | None = None
) -> grain.IterDataset:
    """Rows of tokens, segment_ids, positions and loss_mask from aligned pieces, whole blocks each, packed first-fit."""
    rows = grain.experimental.FirstFitPackIterDataset(
        pieces.map(lambda piece_L3: dict(piece=piece_L3)),  # as one feature: packing costs by the feature
        length_struct=dict(piece=grid.length),
        num_packing_bins=max(WINDOW_TOKENS // grid.length, MIN_WINDOW_ROWS),
        seed=seed,
        max_sequences_per_bin=max_per_row,
    )
    return rows.map(functools.partial(_finish_row, end_id=grid.end_id))


def _finish_row(row: dict[str, np.ndarray], end_id: int) -> Row:
    tokens_L, loss_mask_L, positions_L = np.ascontiguousarray(row["piece"].T)
    segment_ids_L = np.where(positions_L >= 0, row["piece_segment_ids"], 0)
    return dict(
        tokens=np.where(segment_ids_L > 0, tokens_L, end_id),
        segment_ids=segment_ids_L,
        positions=np.maximum(positions_L, 0),
        loss_mask=loss_mask_L,
    )


def without_filler(batch):
    """The batch with no loss on what fills last blocks: what is measured of models that never saw any."""
    return batch | {"loss_mask": (batch["loss_mask"] == 1).astype(np.int32)}


def padding_row(grid: Grid) -> Row:
    """A row without a document, for the last batch of a finite set."""
    zeros_L = np.zeros(grid.length, np.int32)
    return dict(tokens=zeros_L + grid.end_id, segment_ids=zeros_L, positions=zeros_L, loss_mask=zeros_L)
