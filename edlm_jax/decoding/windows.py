"""A window of columns of each row, wherever the row stands: read, written, and forwarded against the cache.

Shapes: B rows, T columns of the window, X token columns, S cache columns.
"""

import jax
import jax.numpy as jnp

from edlm_jax.attention import Bidirectional, Pattern
from edlm_jax.models.cache import DecodingWeights, KVCache, Rotary, forward_cached


def forward_window(
    weights: DecodingWeights,
    cache: KVCache,
    tokens_BT,
    rotary: Rotary,
    pad_B,
    start_B,
    *,
    seen_BTT,
    offset_BT,
    drafts: int = 0,
    wanted_BT=None,
):
    """(x_BTD, cache): a window from start_B on sees what the cache holds before it, and `seen` of itself.

    Its columns are written to the cache side by side; their positions are start_B's plus `offset_BT`, so that several
    guesses at the same tokens can lie in one window. `drafts` and `wanted_BT`: as in `models.cache.forward_cached`.
    """
    T, S = tokens_BT.shape[1], cache.columns
    columns_11S = jnp.arange(S)[None, None]
    before_B1S = (columns_11S >= pad_B[:, None, None]) & (columns_11S < start_B[:, None, None])
    before_BTS = jnp.broadcast_to(before_B1S, (tokens_BT.shape[0], T, S))
    put_columns = jax.vmap(lambda old_TS, new_TT, start: jax.lax.dynamic_update_slice_in_dim(old_TS, new_TT, start, 1))
    rotary_BT = rotary.at(jnp.maximum(start_B[:, None] + offset_BT - pad_B[:, None], 0))
    mask_BTS = put_columns(before_BTS, seen_BTT, start_B)
    return forward_cached(weights, cache, tokens_BT, rotary_BT, start_B, mask_BTS, drafts=drafts, wanted_BT=wanted_BT)


def forward_prompt(
    weights: DecodingWeights, cache: KVCache, tokens_BX, rotary: Rotary, pattern: Pattern, pad_B, end_B, new_B, length
):
    """(x_B1D of the column before `end`, cache): so many columns of a prompt that ends there, those from `new` on.

    Where fewer are left, they end with the prompt, and the cache keeps what it has before `new`. They see the prompt by
    its pattern, as far as the cache holds it; both ways, all of it must be there. x means something where the piece
    ends with that column or, both ways, holds it.
    """
    whole = isinstance(pattern, Bidirectional)  # from 0 on, and may go beyond the end
    at_B = new_B if whole else jnp.minimum(new_B, end_B - length)
    columns_BT = at_B[:, None] + jnp.arange(length)[None]
    columns_11S = jnp.arange(cache.columns)[None, None]
    inside_B1S = (columns_11S >= pad_B[:, None, None]) & (columns_11S < end_B[:, None, None])
    mask_BTS = pattern.allowed(columns_BT[..., None], columns_11S) & inside_B1S
    rotary_BT = rotary.at(jnp.maximum(columns_BT - pad_B[:, None], 0))
    read = length if whole else 1
    new = window(tokens_BX, at_B, length), rotary_BT, at_B, mask_BTS
    wanted_BT = (columns_BT >= jnp.maximum(pad_B, new_B)[:, None]) & (columns_BT < end_B[:, None])
    x_BRD, cache = forward_cached(weights, cache, *new, where_BT=wanted_BT, read=read, wanted_BT=wanted_BT)
    last_B = jnp.clip(end_B - 1 - at_B, 0, read - 1)
    return jnp.take_along_axis(x_BRD, last_B[:, None, None], axis=1), cache


def window(x_BX, start_B, length: int):
    """[B, length]: each row from its own column on."""
    return jax.vmap(lambda row, start: jax.lax.dynamic_slice_in_dim(row, start, length))(x_BX, start_B)


def put(x_BX, new_BT, start_B, where_BT):
    """x_BX with each row's new columns from its own start on, where they are wanted."""

    def row(x_X, new_T, start, where_T):
        old_T = jax.lax.dynamic_slice_in_dim(x_X, start, new_T.shape[0])
        return jax.lax.dynamic_update_slice_in_dim(x_X, jnp.where(where_T, new_T, old_T), start, 0)

    return jax.vmap(row)(x_BX, new_BT, start_B, where_BT)


def put_whole(x_BX, new_BT, start_B):
    """x_BX with all of each row's new columns from its own start on."""
    put_row = lambda row, new, start: jax.lax.dynamic_update_slice_in_dim(row, new, start, 0)  # noqa: E731
    return jax.vmap(put_row)(x_BX, new_BT, start_B)
