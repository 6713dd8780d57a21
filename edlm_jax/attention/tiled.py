"""Attention tile by tile in plain JAX, forward and backward, over the tiles in which a pattern allows anything.

What `attend_splash` is on TPU, for machines without its kernels: one loop over the (query tile, key tile) pairs of a
piece under an online softmax. The list of pairs is an array, so that pieces with other pairs run one program; its
length is that of the longest. The backward pass computes scores again from the saved log-sum-exp: nothing of the size
of T x S is kept.
"""

from dataclasses import dataclass
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from edlm_jax.attention.pattern import Pattern, same_segment
from edlm_jax.attention.splash import Tiles, pad_columns, padded_places, tile_sizes

# Finite, so that a fully masked tile cannot make NaN; its exp is exactly zero beside any allowed score.
NEVER = -(2.0**100)


def attend_tiled(q_BTNH, k_BSKH, v_BSKH, segments, copies_BT, piece, *, pattern, tiles: Tiles):
    """Queries of one piece (`piece` may be traced) over all keys; `segments` is (of queries, of keys) or None."""
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    rule = _Rule(pattern.pattern, *_tile_sizes(pattern, tiles))
    columns = dict(
        visits_P3=jnp.asarray(_visits(pattern, copies_BT is not None, tiles))[piece],
        q_columns_T=jnp.asarray(_query_columns(pattern))[piece],
        k_columns_S=jnp.asarray(_key_columns(pattern)),
    )
    if segments is not None:
        q_BT, k_BS = segments
        columns |= dict(q_segments_BT=pad_columns(q_BT, axis=1, mode="edge"), k_segments_BS=pad_columns(k_BS, axis=1))
    if copies_BT is not None:
        columns |= dict(copies_BT=pad_columns(copies_BT, axis=1, mode="edge"))
    q_BKGTH = jnp.moveaxis((q_BTNH * H**-0.5).reshape(B, T, K, N // K, H), 1, 3)
    k_BKSH, v_BKSH = (pad_columns(x.swapaxes(1, 2), axis=2) for x in (k_BSKH, v_BSKH))
    out_BKGTH = _attend(rule, pad_columns(q_BKGTH, axis=3), k_BKSH, v_BKSH, columns)
    return jnp.moveaxis(out_BKGTH[:, :, :, :T], 3, 1).reshape(B, T, N, H)


@lru_cache(maxsize=16)  # every trace of a layer asks again
def _visits(pattern, any_copies: bool, tiles: Tiles) -> np.ndarray:
    """int32[pieces, P, 3]: (query tile, key tile, 1) where something is allowed; zeros after shorter lists.

    `any_copies`: the noisy columns may be copies of any block, so all clean keys are visited for them.
    """
    (tq, tk), lists = _tile_sizes(pattern, tiles), []
    k_columns_S = _key_columns(pattern)
    for q_columns_T in _query_columns(pattern):
        pairs = []
        for tile in range(len(q_columns_T) // tq):
            q = q_columns_T[tile * tq : (tile + 1) * tq, None]
            own = (np.int32(pattern.length),) if any_copies else ()
            seen_S = (pattern.pattern.allowed(q, k_columns_S[None], *own) & (k_columns_S >= 0)).any(0)
            pairs += [(tile, key, 1) for key in np.nonzero(seen_S.reshape(-1, tk).any(-1))[0]]
        lists.append(pairs)
    most = max(map(len, lists))
    return np.array([pairs + [(0, 0, 0)] * (most - len(pairs)) for pairs in lists], np.int32)


def _tile_sizes(pattern, tiles):
    return tile_sizes(pattern, tiles, pattern.num_queries, pattern.length)


def _query_columns(pattern) -> np.ndarray:
    """int32[pieces, T]: columns of the row; padding is like the last query, so that no softmax is empty."""
    return pattern.query_order[padded_places(pattern.num_queries, pattern.pieces)].reshape(pattern.pieces, -1)


def _key_columns(pattern) -> np.ndarray:
    """int32[S]: columns of the row; -1 is padding."""
    places = padded_places(pattern.length)
    return np.where(np.arange(len(places)) < pattern.length, pattern.order[places], -1).astype(np.int32)


@dataclass(frozen=True)
class _Rule:
    """How a tile is computed; the rest is in arrays."""

    pattern: Pattern
    queries: int
    keys: int

    def tile(self, columns, index):
        """((first query, first key), mask_BTS) of a visit."""
        q_tile, k_tile, real = columns["visits_P3"][index]
        q, k = q_tile * self.queries, k_tile * self.keys
        of_q = lambda x, axis: jax.lax.dynamic_slice_in_dim(x, q, self.queries, axis)  # noqa: E731
        of_k = lambda x, axis: jax.lax.dynamic_slice_in_dim(x, k, self.keys, axis)  # noqa: E731
        q_1T1, k_11S = of_q(columns["q_columns_T"], 0)[None, :, None], of_k(columns["k_columns_S"], 0)[None, None]
        copies = (of_q(columns["copies_BT"], 1)[:, :, None],) if "copies_BT" in columns else ()
        mask_BTS = self.pattern.allowed(q_1T1, k_11S, *copies) & (k_11S >= 0) & (real > 0)
        if "q_segments_BT" in columns:
            mask_BTS &= same_segment(of_q(columns["q_segments_BT"], 1), of_k(columns["k_segments_BS"], 1))
        return (q, k), mask_BTS

    def cut(self, q, k, of_queries, of_keys):
        """The tile's part of arrays of queries (columns on axis 3) and of keys (on axis 2)."""
        q_parts = [jax.lax.dynamic_slice_in_dim(x, q, self.queries, 3) for x in of_queries]
        return *q_parts, *(jax.lax.dynamic_slice_in_dim(x, k, self.keys, 2) for x in of_keys)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(rule, q_BKGTH, k_BKSH, v_BKSH, columns):
    return _forward(rule, q_BKGTH, k_BKSH, v_BKSH, columns)[0]


def _forward(rule, q_BKGTH, k_BKSH, v_BKSH, columns):
    def visit(index, carry):
        (q, k), mask_BTS = rule.tile(columns, index)
        query, out, total, top, key, value = rule.cut(q, k, (q_BKGTH, *carry), (k_BKSH, v_BKSH))
        scores_BKGTS = _scores(query, key, mask_BTS)
        new_top = jnp.maximum(top, scores_BKGTS.max(-1, keepdims=True))
        # Before a query's first allowed key its weights are of nothing; that key's scale then makes them zero.
        scale, weights = jnp.exp(top - new_top), jnp.exp(scores_BKGTS - new_top)
        out = out * scale + _product("BKGTS,BKSH->BKGTH", weights.astype(value.dtype), value)
        total = total * scale + weights.sum(-1, keepdims=True)
        new = zip(carry, (out, total, new_top), strict=True)
        return tuple(jax.lax.dynamic_update_slice_in_dim(whole, part, q, 3) for whole, part in new)

    zeros = jnp.zeros(q_BKGTH.shape, jnp.float32)
    carry = (zeros, zeros[..., :1], jnp.full_like(zeros[..., :1], NEVER))
    out, total, top = jax.lax.fori_loop(0, len(columns["visits_P3"]), visit, carry)
    # Both are kept where a remat policy keeps attention: the loop is then not run again.
    out_BKGTH = checkpoint_name((out / total).astype(q_BKGTH.dtype), "attention")
    lse_BKGT1 = checkpoint_name(top + jnp.log(total), "attention")
    return out_BKGTH, (q_BKGTH, k_BKSH, v_BKSH, columns, out_BKGTH, lse_BKGT1)


def _backward(rule, residuals, g_BKGTH):
    q_BKGTH, k_BKSH, v_BKSH, columns, out_BKGTH, lse_BKGT1 = residuals
    delta_BKGT1 = (out_BKGTH.astype(jnp.float32) * g_BKGTH).sum(-1, keepdims=True)
    of_queries = (q_BKGTH, g_BKGTH, lse_BKGT1, delta_BKGT1)

    def visit(index, carry):
        (q, k), mask_BTS = rule.tile(columns, index)
        cut = rule.cut(q, k, (*of_queries, carry[0]), (k_BKSH, v_BKSH, *carry[1:]))
        query, g, lse, delta, dq, key, value, dk, dv = cut
        weights = jnp.exp(_scores(query, key, mask_BTS) - lse)
        dv += _product("BKGTS,BKGTH->BKSH", weights.astype(g.dtype), g)
        dscores = (weights * (_product("BKGTH,BKSH->BKGTS", g, value) - delta)).astype(query.dtype)
        dq += _product("BKGTS,BKSH->BKGTH", dscores, key)
        dk += _product("BKGTS,BKGTH->BKSH", dscores, query)
        places = zip(carry, (dq, dk, dv), (q, k, k), (3, 2, 2), strict=True)
        return tuple(jax.lax.dynamic_update_slice_in_dim(*place) for place in places)

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q_BKGTH, k_BKSH, v_BKSH))
    grads = jax.lax.fori_loop(0, len(columns["visits_P3"]), visit, zeros)
    return *(grad.astype(x.dtype) for grad, x in zip(grads, residuals, strict=False)), None


_attend.defvjp(_forward, _backward)


def _scores(q_BKGTH, k_BKSH, mask_BTS):
    return jnp.where(mask_BTS[:, None, None], _product("BKGTH,BKSH->BKGTS", q_BKGTH, k_BKSH), NEVER)


def _product(subscripts, a, b):
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)
