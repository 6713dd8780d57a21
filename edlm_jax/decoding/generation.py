"""What decoding returns: tokens and honest counts, the same for every mode."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields

import jax
import numpy as np

from edlm_jax.decoding.logprobs import Logprobs
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

    def first(self, count: int) -> "Generation":
        """The first rows alone."""
        return Generation(*(getattr(self, field.name)[:count] for field in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence["Generation"]) -> "Generation":
        """The rows of all parts, in their order."""
        rows = {field.name: [row for part in parts for row in getattr(part, field.name)] for field in fields(cls)}
        return cls(**rows)

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


def forwards_by_tokens(accepted_at: Iterable[Sequence[int]], forwards: int) -> list[int]:
    """How many of the rows' denoising forwards settled no token, one, two and so on: how far drafts were right."""
    # Tokens numbered 0 are of a prefill that is no denoising forward.
    settled = Counter(count for row in accepted_at for count in Counter(filter(None, row)).values())
    return [forwards - settled.total(), *(settled[count] for count in range(1, max(settled, default=0) + 1))]


@dataclass(frozen=True)
class Settled:
    """What a state holds of each row, on the host: the columns of its new tokens, and its forwards so far."""

    tokens_BX: np.ndarray
    accepted_at_BX: np.ndarray
    columns: list[slice]
    denoise_B: np.ndarray
    commit_B: np.ndarray
    logprobs: Logprobs | None = None  # of lossless modes in the engine

    def generation(self) -> Generation:
        """Of all rows."""
        tokens = [row[columns].tolist() for row, columns in zip(self.tokens_BX, self.columns, strict=True)]
        accepted_at = [row[columns].tolist() for row, columns in zip(self.accepted_at_BX, self.columns, strict=True)]
        return Generation(tokens, accepted_at, self.denoise_B.tolist(), self.commit_B.tolist())


def on_host(arrays: Sequence[jax.Array]) -> list[np.ndarray]:
    """The arrays in numpy. On CPU nothing moves, and announcing six copies took 0.2 ms of a call of 5."""
    return [np.asarray(x) for x in arrays] if platform() == "cpu" else jax.device_get(list(arrays))
