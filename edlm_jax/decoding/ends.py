"""The tokens that end a row, of which a model may have several, as the compiled programs take them."""

import operator
from collections.abc import Sequence

import jax
import numpy as np

from edlm_jax.decoding.prompts import bucket
from edlm_jax.errors import InputError

_ROOM = 8  # ids that fit without another program; more of them double it
_NONE = -1  # no token has this id


def read_ends(eos_id: int | Sequence[int] | None) -> np.ndarray:
    """int32[E]: one id, several or none, filled up so that a list of another length is no other program."""
    try:
        ids = [] if eos_id is None else [operator.index(token) for token in np.atleast_1d(eos_id)]
        filled = ids + [_NONE] * (bucket(len(ids), _ROOM) - len(ids))
        return np.array(filled, np.int32)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"eos_id must be a token's id, a list of them or None, not {eos_id!r}") from None


def is_end(tokens_BT, ends_E) -> jax.Array:
    """bool[B, T]: the tokens that are one of the ends, which may be each row's own, int32[B, 1, E]."""
    return (tokens_BT[..., None] == (ends_E if ends_E.ndim == 3 else ends_E[None, None])).any(axis=-1)


def length_to_end(tokens: Sequence[int], ends: Sequence[int]) -> int:
    """How many tokens there are up to the first end, the end included; all if there is none."""
    return next((count for count, token in enumerate(tokens, 1) if token in ends), len(tokens))
