"""How fast attention is by itself: one layer's, forward and backward, as the trainer has it and with a whole mask."""

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edlm_jax.attention import Pattern, Sight, Tiles, plan_attention, same_segment
from edlm_jax.attention.refusal import refusal
from edlm_jax.benchmarks.training import packed_batch
from edlm_jax.diffusion import example_keys
from edlm_jax.models.spec import ModelSpec
from edlm_jax.parallel.devices import describe
from edlm_jax.training.initial import planned_spec
from edlm_jax.training.run import Run

_REPEATS = 10
TILES = tuple(Tiles(*sizes) for sizes in ((32, 64), (64, 32), (64, 64), (64, 128), (128, 64), (128, 128)))


def time_attention(run: Run, tiles: Sequence[Tiles] = ()) -> dict[str, Any]:
    """Milliseconds on one device for one packed row, all of its streams, as planned and with a whole mask ("dense").

    "speedup" is dense over attend. "ideal_speedup" is scores in all over scores that may be looked at: what a kernel
    would reach that computed no other score, each as fast as the dense one. `tiles`: others to time beside the
    config's; "refused" says why a GPU computed these in plain JAX, "error" why a TPU does not know them. Where the
    device's peak is known, "of_peak" is the share of it that the scores looked at make.
    """
    spec = planned_spec(run.start)
    pattern, segments_BT, copies_BM = packed_row(run, spec)
    mask_BTT, heads = whole_mask(pattern, segments_BT, copies_BM), (spec.num_heads, spec.num_kv_heads)
    T = segments_BT.shape[1]
    sight = Sight(pattern, 1, T, T, segments_BT, segments_BT, copies_BM)
    tiled = {"attend": run.start.tiles} | {f"tiles of {each.queries} x {each.keys}": each for each in tiles}
    plans = {name: partial(plan_attention, sight, heads, its) for name, its in tiled.items()}
    plans["dense"] = lambda: partial(attend_masked, mask_BTS=mask_BTT)
    arrays = random_arrays(1, T, *heads, spec.head_dim, run.start.dtype)

    def side(plan: Callable[[], Callable]) -> Callable[[], Any]:
        program = functools.cache(lambda: forward_and_backward(plan()))  # where it is called first: errors are its own
        return lambda: program()(*arrays)

    found = take_turns({name: side(plan) for name, plan in plans.items()}, _REPEATS)
    for name, its in tiled.items():
        if reason := refusal(its):
            found[name]["refused"] = reason
    # Two products forward and five backward, each of two FLOPs for every number of a head.
    flops = 14 * float(np.sum(mask_BTT)) * spec.num_heads * spec.head_dim
    timed = {name: of["milliseconds"] for name, of in found.items() if "milliseconds" in of}
    if peak := describe(jax.devices()[0].device_kind).peak_flops:
        for name, milliseconds in timed.items():
            found[name]["of_peak"] = 1e3 * flops / milliseconds / peak
    speedup = dict(speedup=timed["dense"] / timed["attend"]) if {"dense", "attend"} <= timed.keys() else {}
    return found | speedup | dict(flops=flops, ideal_speedup=1 / float(np.mean(mask_BTT)))


def packed_row(run: Run, spec: ModelSpec) -> tuple[Pattern, jax.Array, jax.Array | None]:
    """(pattern, segments_BT, copies_BM) of one packed row, all of its streams, under the config's noise."""
    objective, length = run.objective.of_model(spec), run.data.length
    batch = packed_batch(spec.vocab_size, 1, length, objective.layout.block_length)
    noise = objective.corrupt(example_keys(jax.random.key(0), 1), batch)
    return objective.layout.pattern(length), objective.streams(batch, noise).inputs["segment_ids_BT"], noise.copies_BM


def whole_mask(pattern: Pattern, segments_BT, copies_BM=None) -> np.ndarray:
    """bool[B, T, T]: the whole mask of packed rows, of chosen copies too."""
    segments_BT, chosen = np.asarray(segments_BT), {}
    q_T = np.arange(segments_BT.shape[1])
    if copies_BM is not None:  # clean queries are copies of nothing; what stands there is not read
        copies_BT = np.pad(np.asarray(copies_BM), ((0, 0), (0, len(q_T) - copies_BM.shape[1])))
        chosen = dict(copies=copies_BT[:, :, None])
    allowed = pattern.allowed(q_T[None, :, None], q_T[None, None], **chosen)
    return allowed & np.asarray(same_segment(segments_BT, segments_BT))


def attend_masked(q_BTNH, k_BSKH, v_BSKH, *, mask_BTS, implementation: str = "xla"):
    """What a framework without kernels of its own does."""
    mask_B1TS = jnp.asarray(mask_BTS)[:, None]
    return jax.nn.dot_product_attention(q_BTNH, k_BSKH, v_BSKH, mask=mask_B1TS, implementation=implementation)


def random_arrays(rows: int, columns: int, heads: int, key_heads: int, head_size: int, dtype: str) -> list[jax.Array]:
    """[q, k, v, cotangent]"""
    keys, counts = jax.random.split(jax.random.key(0), 4), (heads, key_heads, key_heads, heads)
    shapes = [(rows, columns, count, head_size) for count in counts]
    return [jax.random.normal(key, shape, jnp.float32).astype(dtype) for key, shape in zip(keys, shapes, strict=True)]


def forward_and_backward(attention: Callable) -> Callable:
    """(q, k, v, cotangent) -> (out, dq, dk, dv)"""

    @jax.jit
    def program(q_BTNH, k_BSKH, v_BSKH, weight_BTNH):
        out_BTNH, backward = jax.vjp(attention, q_BTNH, k_BSKH, v_BSKH)
        return out_BTNH, *backward(weight_BTNH)

    return program


def take_turns(programs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, Any]]:
    """Of each program its {"milliseconds": the median call's, "fastest"}, or the {"error"} that it fails with."""
    found, seconds = {}, {}
    for name, program in programs.items():
        try:
            jax.block_until_ready(program())
            seconds[name] = []
        except Exception as error:  # noqa: BLE001 (out of memory, or not on this machine: the others still count)
            found[name] = {"error": " ".join(str(error).split())[:200]}
    for _ in range(repeats):
        for name in seconds:
            start = time.perf_counter()
            jax.block_until_ready(programs[name]())
            seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        found[name] = {"milliseconds": 1e3 * statistics.median(times), "fastest": 1e3 * min(times)}
    return found
