"""Documents become rows of one length: cut, aligned to the block grid, packed first-fit.

With block length 4 (p prompt, r response, t text, e end, . padding; a row of 24):

    tokens       . p p p  r r r e  t t t t  t t e e  p p p p  r e e e
    segment_ids  0 1 1 1  1 1 1 1  2 2 2 2  2 2 2 2  3 3 3 3  3 3 3 3
    positions    0 0 1 2  3 4 5 6  0 1 2 3  4 5 6 7  0 1 2 3  4 5 6 7
    loss_mask    0 0 0 0  1 1 1 1  1 1 1 1  1 1 1 1  0 0 0 0  1 1 1 1

- A document starts on a block boundary. One that begins with a prompt is padded on its left, so that its response does,
  as the decoder's grid starts at the prompt's end.
- Its last block is filled with end tokens that carry loss. The decoder always appends whole blocks of masks: a model
  that had only seen the masks of real tokens would be told by their number where the answer ends.
- A document longer than the row is cut: plain text into rows of its own, each a document from position 0; one with a
  prompt loses what does not fit, because the rest means nothing without the prompt.
"""

import dataclasses

import grain
import numpy as np

from edlm_jax.data.documents import Tokens

# Rows that are open at once. More of them waste less padding, but a resumed run has to fill them again.
OPEN_ROWS = 64


@dataclasses.dataclass(frozen=True)
class Grid:
    """The shape of a row and what fills the last block of a document."""

    length: int
    block_length: int
    end_id: int


def align_document(tokens: Tokens, grid: Grid) -> list[dict[str, np.ndarray]]:
    """The pieces of one document, each starting on a block boundary and filling its last block; none without loss.

    Positions are -1 on the padding to the left of a prompt, so that it can be told from the document once packed.
    """
    tokens_L, loss_mask_L = tokens
    if not loss_mask_L.any():
        return []
    prompt_length = int(loss_mask_L.argmax())
    if prompt_length:
        left = -prompt_length % grid.block_length
        kept = grid.length - left
        pieces = [_piece(tokens_L[:kept], loss_mask_L[:kept], left, grid)]
    else:
        starts = range(0, len(tokens_L), grid.length)
        pieces = [_piece(tokens_L[i : i + grid.length], loss_mask_L[i : i + grid.length], 0, grid) for i in starts]
    return [piece for piece in pieces if piece["loss_mask"].any()]


def _piece(tokens_L: np.ndarray, loss_mask_L: np.ndarray, left: int, grid: Grid) -> dict[str, np.ndarray]:
    right = -(left + len(tokens_L)) % grid.block_length
    return dict(
        tokens=np.pad(tokens_L, (left, right), constant_values=grid.end_id),
        # A document that ends with something given (a pre-tokenised one may) is filled with something given.
        loss_mask=np.pad(loss_mask_L, (left, right), constant_values=(0, loss_mask_L[-1:].sum())),
        positions=np.maximum(np.arange(-left, len(tokens_L) + right, dtype=np.int32), -1),
    )


def pack_documents(
    pieces: grain.IterDataset, grid: Grid, *, seed: int, max_per_row: int | None = None
) -> grain.IterDataset:
    """Rows of tokens, segment_ids, positions and loss_mask from aligned pieces, packed first-fit."""
    names = ("tokens", "loss_mask", "positions")
    rows = grain.experimental.FirstFitPackIterDataset(
        pieces,
        length_struct={name: grid.length for name in names},
        num_packing_bins=OPEN_ROWS,
        seed=seed,
        pack_alignment_struct={name: grid.block_length for name in names},
        padding_struct=dict(tokens=grid.end_id, loss_mask=0, positions=-1),
        max_sequences_per_bin=max_per_row,
    )
    return rows.map(_finish_row)


def _finish_row(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    real_L = row["positions"] >= 0
    return dict(
        tokens=row["tokens"],
        segment_ids=np.where(real_L, row["tokens_segment_ids"], 0),
        positions=np.where(real_L, row["positions"], 0),
        loss_mask=row["loss_mask"],
    )


def padding_row(grid: Grid) -> dict[str, np.ndarray]:
    """A row without a document, for the last batch of a finite set."""
    zeros_L = np.zeros(grid.length, np.int32)
    return dict(tokens=zeros_L + grid.end_id, segment_ids=zeros_L, positions=zeros_L, loss_mask=zeros_L).copy()


def packing_efficiency(batch: dict[str, np.ndarray]) -> float:
    """The share of positions that belong to a document."""
    return float((batch["segment_ids"] > 0).mean())
