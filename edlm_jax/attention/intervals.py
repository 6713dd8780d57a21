"""What a query may look at, as intervals of key columns: a form that kernels read and that may be known only in a step.

In every pattern of the house a query looks at one run of keys or at two (its own noisy block, with those of its group
before it, and the clean columns before these).

Shapes: B batch, T query, S key, M noisy columns, I query tiles, J key tiles, R the runs of a query, start and stop.
"""

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from edlm_jax.attention.pattern import Causal, CleanContext, Pattern, unbounded
from edlm_jax.errors import InputError

_RUNS = 2
_ROWS = 512  # of the mask that are looked at together when runs are read off it


class Visits(NamedTuple):
    """Tiles of scores: `seen` holds a pair that may meet; in `whole` every pair does, so that nothing is masked."""

    seen_BIJ: jax.Array
    whole_BIJ: jax.Array

    def order(self) -> tuple[jax.Array, jax.Array]:
        """(int32[B, I, J] J's tiles, the whole ones first, then other seen ones; int32[B, I, 2] where these end)."""
        rank_BIJ = 2 - self.seen_BIJ.astype(jnp.int32) - self.whole_BIJ
        ends_BI2 = jnp.stack([self.whole_BIJ.sum(-1, dtype=jnp.int32), self.seen_BIJ.sum(-1, dtype=jnp.int32)], -1)
        return jnp.argsort(rank_BIJ, axis=-1, stable=True).astype(jnp.int32), ends_BI2


def key_runs(
    pattern: Pattern, batch: int, q_columns_T: Int[Array, " T"], k_len: int, copies_BM: Int[Array, "B M"] | None = None
) -> Int[Array, "B R T"]:
    """(start, stop, start, stop) of the runs of keys that each query may look at; an unused run is empty.

    Read off `pattern.allowed`, but for noisy columns whose `copies_BM` are known only inside the step. The columns that
    are queries may be known only there, too; copies lie in their order.
    """
    q_len = k_len if isinstance(q_columns_T, jax.Array) else int(q_columns_T.max()) + 1
    runs_RT = jnp.asarray(_read_runs(pattern, q_len, k_len))[:, q_columns_T]
    runs_BRT = jnp.broadcast_to(runs_RT, (batch, *runs_RT.shape))
    if copies_BM is None:
        return runs_BRT
    pattern, window = unbounded(pattern)
    assert isinstance(pattern, CleanContext)
    M, C, S = pattern.noisy_columns, pattern.block_length, pattern.span
    copies_BT = jnp.pad(copies_BM.astype(jnp.int32), ((0, 0), (0, len(q_columns_T) - copies_BM.shape[1])))
    own_T, first = q_columns_T // S * S, M
    own_stop_T = q_columns_T + 1 if pattern.noisy_pattern == Causal() else (q_columns_T // C + 1) * C
    if window is not None:
        own_T = jnp.maximum(own_T, q_columns_T - window + 1)
        own_stop_T = jnp.minimum(own_stop_T, q_columns_T + window)
        first = M + jnp.maximum(copies_BT - window + 1, 0)
    edges = own_T, jnp.minimum(own_stop_T, M), first, M + pattern.first(q_columns_T[None], copies_BT)
    chosen_BRT = jnp.stack([jnp.broadcast_to(edge, copies_BT.shape) for edge in edges], axis=1)
    return jnp.where((q_columns_T < M)[None, None], chosen_BRT, runs_BRT)


def may_look(runs, columns, q_segments, k_segments) -> Bool[Array, "..."]:
    """The mask, of whatever broadcasts: `runs` are the edges of `key_runs`, one by one, `columns` those of the keys."""
    inside = [(columns >= start) & (columns < stop) for start, stop in zip(runs[::2], runs[1::2], strict=True)]
    return (inside[0] | inside[1]) & (q_segments == k_segments)


def visits(runs_BRT, q_segments_BT, k_segments_BS, tile_q: int, tile_k: int) -> Visits:
    """Tiles that the runs reach, but for those without a document in common; a few more than that do no harm."""
    first_111J = np.arange(0, k_segments_BS.shape[1], tile_k, dtype=np.int32)[None, None, None]
    start_BRTJ = jnp.maximum(runs_BRT[:, ::2, :, None], first_111J)
    stop_BRTJ = jnp.minimum(runs_BRT[:, 1::2, :, None], first_111J + tile_k)
    some_BTJ, all_BTJ = _documents(q_segments_BT, k_segments_BS.reshape(len(k_segments_BS), -1, tile_k))
    by_tile = lambda x_BTJ: x_BTJ.reshape(len(x_BTJ), -1, tile_q, x_BTJ.shape[2])  # noqa: E731
    seen_BIJ = by_tile((start_BRTJ < stop_BRTJ).any(1) & some_BTJ).any(2)
    return Visits(seen_BIJ, by_tile((stop_BRTJ - start_BRTJ == tile_k).any(1) & all_BTJ).all(2))


def _documents(q_segments_BT, k_segments_BJS):
    """(May the tile hold a key of the query's document? Does it hold nothing else?), both bool[B, T, J].

    Padding stands between documents too and is looked for by itself, or every tile beside it would meet all others.
    """
    big = jnp.iinfo(jnp.int32).max
    q_BT1 = q_segments_BT[:, :, None]
    padding_BJS = k_segments_BJS == 0
    least_B1J = jnp.where(padding_BJS, big, k_segments_BJS).min(-1)[:, None]
    most_B1J = jnp.where(padding_BJS, -big, k_segments_BJS).max(-1)[:, None]
    some_BTJ = jnp.where(q_BT1 == 0, padding_BJS.any(-1)[:, None], (least_B1J <= q_BT1) & (q_BT1 <= most_B1J))
    all_BTJ = (k_segments_BJS.min(-1)[:, None] == q_BT1) & (k_segments_BJS.max(-1)[:, None] == q_BT1)
    return some_BTJ, all_BTJ


@lru_cache
def _read_runs(pattern: Pattern, q_len: int, k_len: int) -> np.ndarray:
    """int32[R, T], by looking at the mask a few rows at a time."""
    runs_RT = np.zeros((2 * _RUNS, q_len), np.int32)
    columns_S = np.arange(k_len, dtype=np.int32)
    for first in range(0, q_len, _ROWS):
        rows_T = np.arange(first, min(first + _ROWS, q_len), dtype=np.int32)
        mask_TS = np.asarray(pattern.allowed(rows_T[:, None], columns_S[None]), np.int8)
        steps_TS = np.diff(mask_TS, axis=1, prepend=0, append=0)
        for edge, step in enumerate((1, -1)):
            row, column = np.nonzero(steps_TS == step)
            run = np.arange(len(row)) - np.searchsorted(row, row)  # counted within the row
            if run.max(initial=0) >= _RUNS:
                raise InputError(f"{pattern}: a query looks at more than {_RUNS} runs of keys; no kernel reads that")
            runs_RT[2 * run + edge, first + row] = column
    return runs_RT
