"""In which order a block's tokens are decoded: how left-to-right diffusion is when it may choose."""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any


def decode_order(
    accepted_at: Sequence[Sequence[int]], block_length: int, offsets: Sequence[int] | None = None
) -> dict[str, Any]:
    """Of all pairs of tokens in one block, the shares whose left token came earlier, later, and in the same forward.

    "kendall_tau" is tau-b of position and forward over all pairs: 1 from left to right, -1 from right to left, 0 where
    nothing is ordered. "forward_by_position" is the mean forward, counted from the block's first (0), by position.
    `offsets` are the positions of rows' first tokens in their blocks (default 0: blocks begin where the prompt ends).
    """
    orders: Counter[int] = Counter()  # of pairs: 1 where the left one came earlier, -1 later, 0 in the same forward
    forwards: list[list[int]] = [[] for _ in range(block_length)]
    for row, offset in zip(accepted_at, offsets or [0] * len(accepted_at), strict=True):
        for _, group in itertools.groupby(enumerate(row, offset), key=lambda token: token[0] // block_length):
            places, block = zip(*group, strict=True)
            for place, forward in zip(places, block, strict=True):
                forwards[place % block_length].append(forward - min(block))
            orders.update((left < right) - (left > right) for left, right in itertools.combinations(block, 2))
    pairs, apart = orders.total(), orders[1] + orders[-1]
    return {
        "left_first": orders[1] / max(pairs, 1),
        "right_first": orders[-1] / max(pairs, 1),
        "together": orders[0] / max(pairs, 1),
        "kendall_tau": (orders[1] - orders[-1]) / (pairs * apart) ** 0.5 if apart else 0.0,
        "forward_by_position": [sum(found) / len(found) if found else None for found in forwards],
    }
