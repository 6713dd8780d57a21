"""In which order a block's tokens are decoded: how left-to-right diffusion is when it may choose."""

import itertools
from collections.abc import Sequence
from typing import Any


def decode_order(
    accepted_at: Sequence[Sequence[int]], block_length: int, offsets: Sequence[int] | None = None
) -> dict[str, Any]:
    """Of all pairs of tokens in one block, the shares whose left token came earlier, later, and in the same forward.

    "kendall_tau" is tau-b of position and forward over all pairs: 1 from left to right, -1 from right to left, 0 where
    nothing is ordered. "forward_by_position" is the mean forward, counted from the block's first (0), by position.

    Args:
      accepted_at: each row's `Generation.accepted_at`.
      offsets: each row's first token's position in its block (default 0: blocks begin where the prompt ends).
    """
    earlier = later = together = 0
    forwards: list[list[int]] = [[] for _ in range(block_length)]
    for row, offset in zip(accepted_at, offsets or [0] * len(accepted_at), strict=True):
        places = [(index + offset) // block_length for index in range(len(row))]
        for _, group in itertools.groupby(range(len(row)), key=places.__getitem__):
            group = list(group)
            first = min(row[index] for index in group)
            for index in group:
                forwards[(index + offset) % block_length].append(row[index] - first)
            for left, right in itertools.combinations((row[index] for index in group), 2):
                earlier, later, together = earlier + (left < right), later + (left > right), together + (left == right)
    pairs, apart = earlier + later + together, earlier + later
    return {
        "left_first": earlier / pairs if pairs else 0.0,
        "right_first": later / pairs if pairs else 0.0,
        "together": together / pairs if pairs else 0.0,
        "kendall_tau": (earlier - later) / (pairs * apart) ** 0.5 if apart else 0.0,
        "forward_by_position": [sum(found) / len(found) if found else None for found in forwards],
    }
