"""Attention tile by tile in plain JAX, forward and backward, over the tiles in which anything may be looked at.

For long rows where there is no kernel: on CPU, and for rows in pieces beside TPU's kernels. A tile of queries meets all
its tiles of keys under one softmax. How many those are differs (patterns, and documents), and shapes cannot, so that
the tiles of queries are sorted by it and a loop runs for each of a few widths. The backward pass computes scores again
from the saved log-sum-exp: nothing of the size of T x S is kept.

Shapes, beside those of `intervals.py`: K key heads, G query heads of each, H head size, Q queries of a tile, W key
tiles of a width, X = W * keys of a tile.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from edlm_jax.attention.intervals import key_runs, may_look, visits
from edlm_jax.attention.pattern import Sight, Tiles
from edlm_jax.parallel.sharding import by_rows, by_rows_and_heads

# Finite, so that a masked score cannot make NaN; its exp is exactly zero beside any allowed one.
NEVER = -(2.0**100)
TILES = Tiles(128, 128)  # of 64 and of 256 took as long or longer on two cores


def pad(x, axis, size, mode="constant"):
    """Up to a whole number of tiles, with zeros or as `mode` says."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % size)
    return jnp.pad(x, widths, mode=mode)


class Tour(NamedTuple):
    """What the loops are told: whom each query sees, and which tiles of keys each tile of queries visits."""

    runs_BIRQ: jax.Array
    q_ids_BIQ: jax.Array
    k_ids_BJS: jax.Array
    order_BIJ: jax.Array  # the tiles of keys, those to visit first
    by_width_V: jax.Array  # the tiles of queries, B * I of them, those with the fewest to visit first
    ends: jax.Array  # up to where in `by_width_V` each width is enough, from none on


def plan_tiled(sight: Sight, tiles: Tiles | None = None):
    """`attend(q, k, v)` in tiles of plain JAX, on a mesh each device for its own rows and heads."""
    arrays = plan_rows(sight, partial(plan_tour, tiles=tiles or TILES))
    return lambda q, k, v: by_rows_and_heads(attend_tour, q, k, v, arrays)


def plan_rows(sight: Sight, plan):
    """`plan(runs of keys, documents of queries, of keys)`, on a mesh of each device for its own rows."""

    def local(by_row):
        q_ids_BT, k_ids_BS, copies_BM = by_row
        runs_BRT = key_runs(sight.pattern, len(q_ids_BT), np.arange(sight.q_len), sight.k_len, copies_BM)
        return plan(runs_BRT, q_ids_BT, k_ids_BS)

    return by_rows(local, sight.by_row, sight.batch)


def plan_tour(runs_BRT, q_ids_BT, k_ids_BS, tiles: Tiles) -> Tour:
    """The tour of queries to the runs of keys that `key_runs` gave."""
    # Queries that pad the last tile are like the last one: a softmax over nothing is NaN. Nobody's run holds the keys.
    runs_BRT, q_ids_BT = (pad(x, -1, tiles.queries, mode="edge") for x in (runs_BRT, q_ids_BT))
    k_ids_BS = pad(k_ids_BS, 1, tiles.keys)
    order_BIJ, ends_BI2 = visits(runs_BRT, q_ids_BT, k_ids_BS, *tiles).order()
    cut = lambda x, size: x.reshape(*x.shape[:-1], -1, size)  # noqa: E731
    width_V = ends_BI2[..., 1].reshape(-1)
    by_width_V, steps = jnp.argsort(width_V), jnp.array([0, *_widths(order_BIJ.shape[2])])
    ends = jnp.searchsorted(width_V[by_width_V], steps, side="right")
    of_queries = cut(runs_BRT, tiles.queries).swapaxes(1, 2), cut(q_ids_BT, tiles.queries)
    return Tour(*of_queries, cut(k_ids_BS, tiles.keys), order_BIJ, by_width_V, ends)


def attend_tour(q_BTNH, k_BSKH, v_BSKH, tour: Tour):
    """Attention along a tour. Output and log-sum-exp are named "attention" for remat policies."""
    (B, T, N, H), K = q_BTNH.shape, k_BSKH.shape[2]
    Q, S = tour.q_ids_BIQ.shape[2], tour.k_ids_BJS.shape[2]
    # Heads in front of columns, for all tiles at once: the products are then plain batched ones, twice as fast on CPU.
    q_BIQKGH = pad(q_BTNH * H**-0.5, 1, Q).reshape(B, -1, Q, K, N // K, H)
    k_BJKSH, v_BJKSH = (pad(x, 1, S).reshape(B, -1, S, K, H).swapaxes(2, 3) for x in (k_BSKH, v_BSKH))
    out_BIKGQH = _attend(jnp.moveaxis(q_BIQKGH, 2, 4), k_BJKSH, v_BJKSH, tour)
    return jnp.moveaxis(out_BIKGQH, 4, 2).reshape(B, -1, N, H)[:, :T]


def _widths(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, ... up to `most`: at worst a third of what is computed is for nothing."""
    steps = sorted({2**i for i in range(most.bit_length())} | {3 * 2**i for i in range(most.bit_length() - 1)})
    return [*(step for step in steps if step < most), most]


def _visit_all(tour: Tour, visit, carry):
    """`visit(row, query tile, int32[W] key tiles, carry)` of every tile of queries."""
    _, query_tiles, key_tiles = tour.order_BIJ.shape
    for step, width in enumerate(_widths(key_tiles)):

        def of_width(place, carry, width=width):
            row, tile = jnp.divmod(tour.by_width_V[place], query_tiles)
            return visit(row, tile, _at(tour.order_BIJ, row, tile)[:width], carry)

        carry = jax.lax.fori_loop(tour.ends[step], tour.ends[step + 1], of_width, carry)
    return carry


def _forward(q_BIKGQH, k_BJKSH, v_BJKSH, tour):
    def visit(row, tile, keys_W, carry):
        scores_KGQX = _scores(_at(q_BIKGQH, row, tile), _gather(k_BJKSH, row, keys_W), row, tile, keys_W, tour)
        top_KGQ1 = scores_KGQX.max(-1, keepdims=True)
        weights_KGQX = jnp.exp(scores_KGQX - top_KGQ1)
        total_KGQ1 = weights_KGQX.sum(-1, keepdims=True)
        v_KXH = _gather(v_BJKSH, row, keys_W)
        out_KGQH = _product("KGQX,KXH->KGQH", weights_KGQX.astype(v_KXH.dtype), v_KXH) / total_KGQ1
        new = out_KGQH.astype(q_BIKGQH.dtype), top_KGQ1 + jnp.log(total_KGQ1)
        return jax.tree.map(partial(_put, row, tile), carry, new)

    empty = jnp.zeros_like(q_BIKGQH), jnp.zeros(q_BIKGQH.shape[:-1] + (1,), jnp.float32)
    # Both are kept where a remat policy keeps attention: the loops are then not run again.
    out_BIKGQH, lse_BIKGQ1 = checkpoint_name(_visit_all(tour, visit, empty), "attention")
    return out_BIKGQH, (q_BIKGQH, k_BJKSH, v_BJKSH, tour, out_BIKGQH, lse_BIKGQ1)


def _backward(residuals, g_BIKGQH):
    q_BIKGQH, k_BJKSH, v_BJKSH, tour, out_BIKGQH, lse_BIKGQ1 = residuals
    delta_BIKGQ1 = (out_BIKGQH.astype(jnp.float32) * g_BIKGQH).sum(-1, keepdims=True)
    of_queries = q_BIKGQH, g_BIKGQH, lse_BIKGQ1, delta_BIKGQ1

    def visit(row, tile, keys_W, carry):
        q_KGQH, g_KGQH, lse_KGQ1, delta_KGQ1 = (_at(x, row, tile) for x in of_queries)
        k_KXH, v_KXH = (_gather(x, row, keys_W) for x in (k_BJKSH, v_BJKSH))
        weights_KGQX = jnp.exp(_scores(q_KGQH, k_KXH, row, tile, keys_W, tour) - lse_KGQ1)
        dscores_KGQX = weights_KGQX * (_product("KGQH,KXH->KGQX", g_KGQH, v_KXH) - delta_KGQ1)
        dq_BIKGQH, *dkv = carry
        dq_KGQH = _product("KGQX,KXH->KGQH", dscores_KGQX.astype(k_KXH.dtype), k_KXH)
        dq_BIKGQH = _put(row, tile, dq_BIKGQH, dq_KGQH)
        # The left operand is transposed in memory on CPU, hence not the wide one: 1.4 to 1.9 times as fast. In float32,
        # since XLA knows this product of no other type there.
        pairs = (q_KGQH, dscores_KGQX), (g_KGQH, weights_KGQX)
        new = [_product("KGQH,KGQX->KHX", x_KGQH.astype(jnp.float32), y_KGQX) for x_KGQH, y_KGQX in pairs]

        def add(w, dkv, S=tour.k_ids_BJS.shape[2]):
            parts = (jax.lax.dynamic_slice_in_dim(x_KHX, w * S, S, axis=2) for x_KHX in new)
            both, key = zip(dkv, parts, strict=True), keys_W[w]
            return [_put(row, key, x, _at(x, row, key) + part_KHS.swapaxes(1, 2)) for x, part_KHS in both]

        return dq_BIKGQH, *jax.lax.fori_loop(0, len(keys_W), add, dkv)

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q_BIKGQH, k_BJKSH, v_BJKSH))
    grads = _visit_all(tour, visit, zeros)
    return *(grad.astype(x.dtype) for grad, x in zip(grads, residuals, strict=False)), None


_attend = jax.custom_vjp(lambda *arrays: _forward(*arrays)[0])
_attend.defvjp(_forward, _backward)


def _scores(q_KGQH, k_KXH, row, tile, keys_W, tour):
    S = tour.k_ids_BJS.shape[2]
    columns_1X = (keys_W[:, None] * S + jnp.arange(S)[None]).reshape(1, -1)
    runs = [edge_Q[:, None] for edge_Q in _at(tour.runs_BIRQ, row, tile)]
    ids_Q1, ids_1X = _at(tour.q_ids_BIQ, row, tile)[:, None], tour.k_ids_BJS[row, keys_W].reshape(1, -1)
    seen_QX = may_look(runs, columns_1X, ids_Q1, ids_1X)
    return jnp.where(seen_QX[None, None], _product("KGQH,KXH->KGQX", q_KGQH, k_KXH), NEVER)


def _gather(x_BJKSH, row, keys_W):
    """[K, X, H]: tiles of keys one after the other."""
    x_WKSH = x_BJKSH[row, keys_W]
    return x_WKSH.swapaxes(0, 1).reshape(x_WKSH.shape[1], -1, x_WKSH.shape[3])


def _at(x, row, tile):
    return jax.lax.dynamic_slice(x, (row, tile) + (0,) * (x.ndim - 2), (1, 1) + x.shape[2:])[0, 0]


def _put(row, tile, whole, part):
    return jax.lax.dynamic_update_slice(whole, part[None, None], (row, tile) + (0,) * (whole.ndim - 2))


def _product(subscripts, a, b):
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)
