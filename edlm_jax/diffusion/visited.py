"""Masks as a decoder met them: blocks are hidden as they were before some forward of its own decoding.

The paper leaves open how to choose what is hidden (arXiv 2512.14067, "automated masking schedules"); here it is drawn
from the file that `edlm generate --out` writes, in which `accepted_at` says which forward accepted each token:

    accepted_at   1 3 1 2 | 5 4         C = 4: the states are the masks before forwards 1, 2, 3, and 4, 5
    hidden        M M M M,  . M . M,  . M . .,  M M M M,  M . M M      what lies behind an answer's end counts as hidden
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import jax
import jax.numpy as jnp

from edlm_jax.diffusion.noise import Noise
from edlm_jax.errors import InputError

State = tuple[bool, ...]  # which tokens of a block are masks


@dataclass(frozen=True)
class Visited(Noise):
    """Each block draws one of the states, as often as it was met; its level is the share that it hides."""

    states: tuple[State, ...]
    counts: tuple[int, ...]

    @classmethod
    def read(cls, mask_id: int, path: str, block_length: int) -> Self:
        """Those of a file of responses, in blocks of this length."""
        if not path:
            raise InputError("config.objective.noise='visited' needs config.objective.states, a file of responses")
        try:
            with open(path, encoding="utf-8") as lines:
                rows = [json.loads(line)["accepted_at"] for line in lines]
        except OSError as error:
            raise InputError(f"config.objective.states: cannot read {path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path} does not say when tokens were accepted; see edlm generate --out") from None
        for line, row in enumerate(rows, start=1):
            if not (isinstance(row, list) and all(isinstance(at, int) and at > 0 for at in row)):
                raise InputError(f"{path}: line {line}: accepted_at must be a list of forwards, counted from 1")
        met = count_states(rows, block_length)
        return cls(mask_id, tuple(met), tuple(met.values()))

    @property
    def fingerprint(self) -> str:
        """Of the states and how often each was met, in this order."""
        return hashlib.sha256(repr((self.states, self.counts)).encode()).hexdigest()

    def hide(self, key, corruptible_L, block_length):
        if block_length != len(self.states[0]):
            raise InputError(f"config.objective.states are of blocks of {len(self.states[0])}, not {block_length}")
        log_counts = jnp.log(jnp.asarray(self.counts, jnp.float32))
        drawn_N = jax.random.categorical(key, log_counts, shape=(len(corruptible_L) // block_length,))
        corruptible_NC = corruptible_L.reshape(-1, block_length)
        masked_NC = jnp.asarray(self.states)[drawn_N] & corruptible_NC
        level_N1 = masked_NC.sum(axis=1, keepdims=True) / jnp.maximum(corruptible_NC.sum(axis=1, keepdims=True), 1)
        level_NC = jnp.broadcast_to(jnp.where(level_N1 > 0, level_N1, 1.0), masked_NC.shape)
        return masked_NC.reshape(-1), level_NC.reshape(-1)


def count_states(accepted_at: Iterable[Sequence[int]], block_length: int) -> Counter[State]:
    """How often each state was met, by rows whose first block begins with their first token."""
    met = Counter(state for row in accepted_at for _, _, state in visits(row, block_length))
    if not met:
        raise InputError("config.objective.states: the file has no tokens")
    return met


def visits(accepted_at: Sequence[int], block_length: int) -> Iterator[tuple[int, int, State]]:
    """(the block's first token, a forward of it, from 1, what was hidden before that) of a row, in turn."""
    before = 0
    for first in range(0, len(accepted_at), block_length):
        block = accepted_at[first : first + block_length]
        behind = (True,) * (block_length - len(block))
        for forward in range(before + 1, max(block) + 1):
            yield first, forward, tuple(at >= forward for at in block) + behind
        before = max(block)
