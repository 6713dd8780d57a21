"""Attention on GPU: Pallas kernels for Triton, forward and backward, over the tiles in which a pattern allows anything.

A query's two runs of keys (`intervals.py`) go through one softmax in one kernel: no parts to merge by log-sum-exp, and
tiles that are seen whole are not masked. Ours, because no library's kernels do it: tokamax 0.0.12 takes one run for
each query, and its backward kernels visit every tile, or read a dense mask, whatever that run is.

Compared with `attend_dense` in interpret mode; not yet run on a GPU. Compiled for A100, H100 and RTX 4090 (`edlm
compile`, docs/compile.md; bfloat16, H = 128), the default tiles take at most 101 KB of shared memory and spill nothing.

Shapes, beside those of `intervals.py`: N query heads, K key heads (N = K * G), H head size.
"""

import math
from collections import namedtuple
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl

from edlm_jax.attention.intervals import may_look, visits
from edlm_jax.attention.pattern import Sight, Tiles
from edlm_jax.attention.tiled import NEVER, pad, plan_rows
from edlm_jax.errors import InputError
from edlm_jax.parallel.sharding import by_rows_and_heads

_SMALLEST = 16  # Triton multiplies matrices from this size on, in powers of two
_LOG2_E = math.log2(math.e)  # its exponential has base 2
_STAGES = 2  # copies of a tile in flight; a choice, not yet measured on a GPU
TILES = Tiles(64, 64)  # powers of two from 16 on; not yet measured on a GPU


class _Plan(NamedTuple):
    """Who may look at whom, and for each tile of queries, and of keys, the tiles to visit, see `Visits.order`."""

    mask: tuple[jax.Array, jax.Array, jax.Array]  # the runs of keys of each query, documents of queries and of keys
    by_query: tuple[jax.Array, jax.Array]
    by_key: tuple[jax.Array, jax.Array]


# What a kernel is told: the mask and its own part of the plan. Arrays, specs or refs.
_Tour = namedtuple("_Tour", ("runs", "q_ids", "k_ids", "order", "ends"))
_Settings = namedtuple("_Settings", ("tiles", "scale", "interpret"))


def plan_triton(sight: Sight, tiles: Tiles | None = None, interpret: bool = False):
    """`attend(q, k, v)` in tiles, on a mesh each device for its own rows and heads; `interpret`: as Python, slowly."""
    tiles = checked(tiles)
    arrays = plan_rows(sight, partial(plan_visits, tiles=tiles))
    return partial(by_rows_and_heads, partial(attend_visits, tiles, interpret), arrays=arrays)


def checked(tiles: Tiles | None) -> Tiles:
    """These, or the default; InputError for sizes that Triton does not know."""
    tiles = tiles or TILES
    if any(size < _SMALLEST or size & (size - 1) for size in tiles):
        raise InputError(f"tiles of attention on GPU are powers of two from {_SMALLEST} on, not {tuple(tiles)}")
    return tiles


def plan_visits(runs_BRT, q_ids_BT, k_ids_BS, tiles: Tiles) -> _Plan:
    """What the kernels are told of queries and the runs of keys that `key_runs` gave."""
    # Queries that pad the last tile are like the last one: a softmax over nothing is NaN. Nobody's run holds the keys.
    of_queries = (pad(x, -1, tiles.queries, mode="edge") for x in (runs_BRT, q_ids_BT))
    mask = (*of_queries, pad(k_ids_BS, 1, tiles.keys))
    by_query = visits(*mask, *tiles)
    by_key = jax.tree.map(lambda x_BIJ: x_BIJ.swapaxes(1, 2), by_query)
    return _Plan(mask, by_query.order(), by_key.order())


def attend_visits(tiles: Tiles, interpret: bool, q_BTNH, k_BSKH, v_BSKH, plan: _Plan):
    """Attention of one device's rows and heads, as planned."""
    T, H = q_BTNH.shape[1], q_BTNH.shape[3]
    head_size = max(pl.next_power_of_2(H), _SMALLEST)
    arrays = (q_BTNH, tiles.queries), (k_BSKH, tiles.keys), (v_BSKH, tiles.keys)
    q_BTNH, k_BSKH, v_BSKH = (pad(pad(x, 1, size), 3, head_size) for x, size in arrays)
    return _attention(q_BTNH, k_BSKH, v_BSKH, plan, _Settings(tiles, H**-0.5, interpret))[:, :T, :, :H]


@partial(jax.jit, static_argnames="settings")
def _forward(q_BTNH, k_BSKH, v_BSKH, plan, settings):
    """(attention, log2 of the sum of exp2 of each query's scaled scores)

    Under jit, because rematerialisation drops that where nothing of it is used, but never drops a bare kernel.
    """
    (B, T, N, _), specs = q_BTNH.shape, _specs(q_BTNH, k_BSKH, settings.tiles, by_key=False)
    out_shape = [_like(q_BTNH), jax.ShapeDtypeStruct((B, N, T), jnp.float32)]
    in_specs, out_specs = [specs.q, specs.k, specs.k, specs.tour], [specs.q, specs.numbers]
    how = dict(grid=specs.grid, in_specs=in_specs, out_specs=out_specs, out_shape=out_shape)
    return _call(_forward_kernel, settings, **how)(q_BTNH, k_BSKH, v_BSKH, _Tour(*plan.mask, *plan.by_query))


def _forward_saving(q_BTNH, k_BSKH, v_BSKH, plan, settings):
    named = [checkpoint_name(x, "attention") for x in _forward(q_BTNH, k_BSKH, v_BSKH, plan, settings)]
    return named[0], (q_BTNH, k_BSKH, v_BSKH, plan, *named)


@partial(jax.jit, static_argnums=0)
def _backward(settings, residuals, dout_BTNH):
    q_BTNH, k_BSKH, v_BSKH, plan, out_BTNH, lse_BNT = residuals
    delta_BNT = jnp.einsum("BTNH,BTNH->BNT", out_BTNH, dout_BTNH, preferred_element_type=jnp.float32)
    arrays = (q_BTNH, k_BSKH, v_BSKH, dout_BTNH, lse_BNT, delta_BNT)

    def call(kernel, specs, visits, **outs):
        in_specs = [specs.q, specs.k, specs.k, specs.q, specs.numbers, specs.numbers, specs.tour]
        program = _call(kernel, settings, grid=specs.grid, in_specs=in_specs, **outs)
        return program(*arrays, _Tour(*plan.mask, *visits))

    by_q, by_k = (_specs(q_BTNH, k_BSKH, settings.tiles, by_key) for by_key in (False, True))
    dq_BTNH = call(_dq_kernel, by_q, plan.by_query, out_specs=by_q.q, out_shape=_like(q_BTNH))
    outs = dict(out_specs=[by_k.k, by_k.k], out_shape=[_like(k_BSKH), _like(v_BSKH)])
    return dq_BTNH, *call(_dkv_kernel, by_k, plan.by_key, **outs), None


_attention = jax.custom_vjp(lambda *told: _forward(*told)[0], nondiff_argnums=(4,))
_attention.defvjp(_forward_saving, _backward)


# ---- kernels: a program has one tile of queries (or keys) of one head in hand and visits tiles of keys (or queries);
# ---- T and S are the columns of a tile


def _forward_kernel(q_ref, k_ref, v_ref, tour, out_ref, lse_ref, *, settings):
    q_TH, runs, q_ids_T1 = q_ref[...], [tour.runs[edge][:, None] for edge in range(4)], tour.q_ids[...][:, None]
    T, S = q_TH.shape[0], settings.tiles.keys

    def visit(i, carry, masked):
        out_TH, total_T, top_T = carry
        keys, columns_S = _tile(tour.order[i], S)
        scores_TS = _dot(q_TH, k_ref[keys, :], transposed=True) * (settings.scale * _LOG2_E)
        if masked:
            seen_TS = may_look(runs, columns_S[None], q_ids_T1, tour.k_ids[keys][None])
            scores_TS = jnp.where(seen_TS, scores_TS, NEVER)
        new_top_T = jnp.maximum(top_T, scores_TS.max(1))
        # A query that sees nothing here gathers nonsense; the first key that it does see shrinks that to zero.
        weights_TS, shrink_T = jnp.exp2(scores_TS - new_top_T[:, None]), jnp.exp2(top_T - new_top_T)
        out_TH = out_TH * shrink_T[:, None] + _dot(weights_TS.astype(v_ref.dtype), v_ref[keys, :])
        return out_TH, total_T * shrink_T + weights_TS.sum(1), new_top_T

    carry = jnp.zeros(q_TH.shape, jnp.float32), jnp.zeros(T, jnp.float32), jnp.full(T, NEVER, jnp.float32)
    out_TH, total_T, top_T = _visit_all(visit, tour.ends, carry)
    out_ref[...] = (out_TH / total_T[:, None]).astype(out_ref.dtype)
    lse_ref[...] = top_T + jnp.log2(total_T)


def _dq_kernel(q_ref, k_ref, v_ref, dout_ref, lse_ref, delta_ref, tour, dq_ref, *, settings):
    q_TH, dout_TH, lse_T1, delta_T1 = q_ref[...], dout_ref[...], lse_ref[...][:, None], delta_ref[...][:, None]
    runs, q_ids_T1 = [tour.runs[edge][:, None] for edge in range(4)], tour.q_ids[...][:, None]

    def visit(i, dq_TH, masked):
        keys, columns_S = _tile(tour.order[i], settings.tiles.keys)
        k_SH = k_ref[keys, :]
        scores_TS = _dot(q_TH, k_SH, transposed=True) * (settings.scale * _LOG2_E)
        if masked:
            seen_TS = may_look(runs, columns_S[None], q_ids_T1, tour.k_ids[keys][None])
            scores_TS = jnp.where(seen_TS, scores_TS, NEVER)
        dweights_TS = _dot(dout_TH, v_ref[keys, :], transposed=True)
        dscores_TS = jnp.exp2(scores_TS - lse_T1) * (dweights_TS - delta_T1)
        return dq_TH + _dot(dscores_TS.astype(k_SH.dtype), k_SH)

    dq_TH = _visit_all(visit, tour.ends, jnp.zeros(q_TH.shape, jnp.float32))
    dq_ref[...] = (dq_TH * settings.scale).astype(q_ref.dtype)


def _dkv_kernel(q_ref, k_ref, v_ref, dout_ref, lse_ref, delta_ref, tour, dk_ref, dv_ref, *, settings):
    """All scores are transposed: then no sum has to be, only what it is multiplied with."""
    k_SH, v_SH, k_ids_S1 = k_ref[...], v_ref[...], tour.k_ids[...][:, None]
    _, columns_S = _tile(pl.program_id(0), settings.tiles.keys)

    def head(g, carry):
        def visit(i, carry, masked):
            dk_SH, dv_SH = carry
            queries, _ = _tile(tour.order[i], settings.tiles.queries)
            q_TH, dout_TH = q_ref[queries, g, :], dout_ref[queries, g, :]
            scores_ST = _dot(k_SH, q_TH, transposed=True) * (settings.scale * _LOG2_E)
            if masked:
                runs = [tour.runs[edge, queries][None] for edge in range(4)]
                seen_ST = may_look(runs, columns_S[:, None], tour.q_ids[queries][None], k_ids_S1)
                scores_ST = jnp.where(seen_ST, scores_ST, NEVER)
            weights_ST = jnp.exp2(scores_ST - lse_ref[g, queries][None])
            dv_SH = dv_SH + _dot(weights_ST.astype(dout_TH.dtype), dout_TH)
            dweights_ST = _dot(v_SH, dout_TH, transposed=True)
            dscores_ST = weights_ST * (dweights_ST - delta_ref[g, queries][None])
            return dk_SH + _dot(dscores_ST.astype(q_TH.dtype), q_TH), dv_SH

        return _visit_all(visit, tour.ends, carry)

    zeros_SH = jnp.zeros(k_SH.shape, jnp.float32)
    dk_SH, dv_SH = jax.lax.fori_loop(0, q_ref.shape[1], head, (zeros_SH, zeros_SH))
    dk_ref[...] = (dk_SH * settings.scale).astype(k_ref.dtype)
    dv_ref[...] = dv_SH.astype(v_ref.dtype)


def _visit_all(visit, ends_ref, carry):
    carry = jax.lax.fori_loop(0, ends_ref[0], partial(visit, masked=False), carry)
    return jax.lax.fori_loop(ends_ref[0], ends_ref[1], partial(visit, masked=True), carry)


def _dot(a, b, transposed=False):
    """a @ b, or a @ b.T, summed in float32."""
    return jax.lax.dot_general(a, b, (((1,), (int(transposed),)), ((), ())), preferred_element_type=jnp.float32)


def _tile(index, size):
    """(its slice, its columns)"""
    return pl.ds(index * size, size), index * size + jnp.arange(size, dtype=jnp.int32)


# ---- what a program holds of each array ----


# q is also out and the gradients of both, k also v and the gradients of both, numbers one for each query and head.
_Specs = namedtuple("_Specs", ("grid", "q", "k", "numbers", "tour"))


def _specs(q_BTNH, k_BSKH, tiles, by_key):
    """With a tile of queries of one head in hand and all keys in reach; or of keys, and all queries of their heads."""
    (B, T, N, H), (_, S, K, _) = q_BTNH.shape, k_BSKH.shape
    tiles_q, tiles_k = T // tiles.queries, S // tiles.keys
    grid, visited = ((tiles_k, B, K), tiles_q) if by_key else ((tiles_q, B, N), tiles_k)
    size_q, heads, q_at = (T, N // K, lambda i: 0) if by_key else (tiles.queries, None, lambda i: i)
    size_k, k_at = (tiles.keys, lambda i: i) if by_key else (S, lambda i: 0)
    k_head = lambda n: n if by_key else jax.lax.div(n, N // K)  # noqa: E731
    return _Specs(
        grid=grid,
        q=pl.BlockSpec((None, size_q, heads, H), lambda i, b, n: (b, q_at(i), n, 0)),
        k=pl.BlockSpec((None, size_k, None, H), lambda i, b, n: (b, k_at(i), k_head(n), 0)),
        numbers=pl.BlockSpec((None, heads, size_q), lambda i, b, n: (b, n, q_at(i))),
        tour=_Tour(
            runs=pl.BlockSpec((None, 4, size_q), lambda i, b, n: (b, 0, q_at(i))),
            q_ids=pl.BlockSpec((None, size_q), lambda i, b, n: (b, q_at(i))),
            k_ids=pl.BlockSpec((None, size_k), lambda i, b, n: (b, k_at(i))),
            order=pl.BlockSpec((None, None, visited), lambda i, b, n: (b, i, 0)),
            ends=pl.BlockSpec((None, None, 2), lambda i, b, n: (b, i, 0)),
        ),
    )


def _call(kernel, settings, **how):
    # Here, because jax 0.12 announces that it will leave, and only a GPU needs it.
    from jax.experimental.pallas import triton

    # dk and dv are two sums: in four warps they would spill 48 to 68 bytes a thread.
    warps = max(8 if kernel is _dkv_kernel else 4, settings.tiles.queries // 16)
    how |= dict(interpret=settings.interpret, name=kernel.__name__.strip("_"))
    how |= dict(compiler_params=triton.CompilerParams(num_warps=warps, num_stages=_STAGES))
    return pl.pallas_call(partial(kernel, settings=settings), **how)


def _like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
