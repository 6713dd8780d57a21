"""What decoding returns: tokens and honest counts, the same for every mode."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import numpy as np

from edlm_jax.decoding.blocks import BlockState, Request
from edlm_jax.decoding.ends import length_to_end
from edlm_jax.decoding.left_to_right import RowRequest, Rows
from edlm_jax.parallel.devices import platform


@dataclass(frozen=True)
class Generation:
    """New tokens of each row, up to and including its end, or up to a stop string, and the forwards they took.

    Forwards are counted per row and summed over rows: a row that is done no longer counts. The prefill is each row's
    first: it yields the first token in AR mode and is the first denoising step in diffusion mode. Where commits and the
    prefill give first tokens (blocks.py), they are no denoising forwards; such a token has the number of the last one.
    """

    tokens: list[list[int]]
    accepted_at: list[list[int]]  # for each token, the row's denoising forward (from 1) that accepted it
    row_denoise_forwards: list[int]
    row_commit_forwards: list[int]
    texts: list[str] = field(default_factory=list)  # with `detokenize`: each row's text, cut at the stop string

    @property
    def denoise_forwards(self) -> int:
        """Forwards that produced tokens."""
        return sum(self.row_denoise_forwards)

    @property
    def commit_forwards(self) -> int:
        """Forwards that only wrote a finished block into the cache (0 when commits ride in denoising forwards)."""
        return sum(self.row_commit_forwards)

    @property
    def tokens_per_forward(self) -> float:
        """Generated tokens per denoising forward (TPF)."""
        return sum(map(len, self.tokens)) / max(self.denoise_forwards, 1)


def on_host(arrays: Sequence[jax.Array]) -> list[np.ndarray]:
    """The arrays in numpy. On CPU nothing moves, and announcing six copies took 0.2 ms of a call of 5."""
    return [np.asarray(x) for x in arrays] if platform() == "cpu" else jax.device_get(list(arrays))


def collect_blocks(state: BlockState, request: Request) -> Generation:
    """What a state holds: of a row that is not done, its finished blocks."""
    final = (state.tokens_BX, state.accepted_at_BX, state.start_B, state.done_B, state.denoise_B, state.commit_B)
    tokens_BX, accepted_at_BX, start_B, done_B, denoise_B, commit_B = on_host(final)
    P, ends, tokens, accepted_at = request.prompts_BP.shape[1], request.ends_E.tolist(), [], []
    rows = zip(tokens_BX, accepted_at_BX, start_B, done_B, P + request.given_B, strict=True)
    for row, at, start, done, begin in rows:
        new = row[begin : begin + request.limit if done else max(start, begin)].tolist()
        length = length_to_end(new, ends)
        tokens.append(new[:length])
        accepted_at.append(at[begin : begin + length].tolist())
    return Generation(tokens, accepted_at, denoise_B.tolist(), commit_B.tolist())


def collect_rows(rows: Rows, request: RowRequest) -> Generation:
    """What is settled; there are no commits, for a causal cache takes tokens as they come."""
    final = (rows.tokens_BX, rows.settled_at_BX, rows.count_B, rows.forwards_B)
    tokens_BX, at_BX, count_B, forwards_B = on_host(final)
    P = request.prompts_BP.shape[1]
    tokens = [row[P : P + count].tolist() for row, count in zip(tokens_BX, count_B, strict=True)]
    accepted_at = [row[P : P + count].tolist() for row, count in zip(at_BX, count_B, strict=True)]
    return Generation(tokens, accepted_at, forwards_B.tolist(), [0] * len(tokens))


def collect_autoregressive(tokens_BX: np.ndarray, count_B: np.ndarray, P: int) -> Generation:
    """A row of n tokens has taken n forwards."""
    counts = count_B.tolist()
    tokens = [row[P : P + count].tolist() for row, count in zip(tokens_BX, counts, strict=True)]
    return Generation(tokens, [list(range(1, count + 1)) for count in counts], counts, [0] * len(counts))
