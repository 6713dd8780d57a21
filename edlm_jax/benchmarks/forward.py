"""What a forward of several columns and rows costs, beside what memory and products allow.

Shapes: B rows, T columns, S cache columns, K key heads, H head size.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from edlm_jax.decoding.compiled import compiled
from edlm_jax.models import ModelSpec, Transformer
from edlm_jax.models.backend import describe
from edlm_jax.models.cache import DecodingWeights, KVCache, Rotary, forward_cached
from edlm_jax.models.layer import layer_shapes

COLUMNS, CACHED = (1, 2, 3, 4, 6, 8, 12, 16), 256
_STREAM, _SIDE = 2**28, 2048  # bytes of the array that is read and the side of the matrices, for what a machine can do


def forward_seconds(
    weights: DecodingWeights, widths: Sequence[int], *, cached: int, rows: int = 1, repeats: int = 15
) -> dict[int, float]:
    """Seconds of one forward of T columns a row against `cached` ones, head included, for each T of `widths`, in turns.

    Each is a median over loops of at least some twentieth of a second.
    """
    loops, counts = {T: _loop(weights, rows, T, cached) for T in widths}, {}
    for T, loop in loops.items():
        loop(1)
        counts[T] = min(max(int(0.05 / _seconds(loop, 1)), 1), 100)
    turns = [{T: _seconds(loop, counts[T]) / counts[T] for T, loop in loops.items()} for _ in range(repeats)]
    return {T: statistics.median(turn[T] for turn in turns) for T in widths}


def measure_forward(
    spec: ModelSpec, dtype: str, stored: str, batch_sizes: Sequence[int], repeats: int
) -> dict[str, Any]:
    """Milliseconds by rows and columns with random weights, and what this machine's memory and products allow.

    The weights are numbers of `stored`, the checkpoint's dtype: where decoding keeps bfloat16 narrow, so does this.
    """
    weights = DecodingWeights.of(_random(spec, dtype, stored))
    stream, products = stream_rate(), product_rate(dtype)
    head = weights.embedding_VD if weights.head_DV is None else weights.head_DV
    read = sum(x.nbytes for x in jax.tree.leaves((weights.layers, head)) if x.ndim > 1)
    found: dict[str, Any] = {
        "dtype": dtype,
        "products": describe(weights.backend, weights.dtype),
        "weight_bytes": read,
        "stream_bytes_per_second": stream,
        "product_flops_per_second": products,
        "cached_columns": CACHED,
        **{name: {} for name in ("forward_ms", "forward_ratio", "memory_ms", "product_ms")},
    }
    cache_bytes = 2 * spec.num_layers * CACHED * spec.num_kv_heads * spec.head_dim * weights.dtype.itemsize
    flops = 2 * matrix_parameters(spec) + 4 * spec.num_layers * CACHED * spec.num_heads * spec.head_dim  # of a column
    for rows in batch_sizes:
        seconds = forward_seconds(weights, COLUMNS, cached=CACHED, rows=rows, repeats=repeats)
        found["forward_ms"][rows] = {T: 1e3 * value for T, value in seconds.items()}
        found["forward_ratio"][rows] = {T: value / seconds[1] for T, value in seconds.items()}
        found["memory_ms"][rows] = 1e3 * (read + rows * cache_bytes) / stream
        found["product_ms"][rows] = {T: 1e3 * rows * T * flops / products for T in COLUMNS}
    return found


def stream_rate() -> float:
    """Bytes per second of reading a large array, the best of two ways and some tries."""
    x = jnp.ones((256, _STREAM // 4 // 256))
    ways = [jax.jit(lambda x: x.max(axis=1)), jax.jit(lambda x: x.sum(axis=1))]
    return x.nbytes / min(_best(way, x) for way in ways)


def product_rate(dtype: str) -> float:
    """FLOP/s of a large product in the dtype, the best of some tries."""
    x = jnp.ones((_SIDE, _SIDE), dtype)
    product = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32))  # as the layers have it
    return 2 * _SIDE**3 / _best(product, x)


def _best(function, *args):
    return min(_seconds(function, *args) for _ in range(11))  # the first one compiles


def _seconds(function, *args):
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - start


def _random(spec, dtype, stored):
    graph, params = nnx.split(Transformer(spec, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=dtype))
    return nnx.merge(graph, jax.tree.map(lambda x: x.astype(stored).astype(dtype), params))


def matrix_parameters(spec: ModelSpec) -> int:
    """Numbers in all matrices that a token is multiplied with."""
    layer = sum(int(np.prod(shape)) for shape in layer_shapes(spec).values() if len(shape) > 1)
    return spec.num_layers * layer + spec.width * spec.vocab_size


def _loop(weights, B, T, cached):
    """A function that makes so many forwards, all in one cache: a copy of it would cost more than a forward does."""
    spec, length = weights.spec, cached + T
    mask_BTS = jnp.ones((B, T, length), bool)

    @compiled(donate_argnames="carry")
    def run(weights, carry, count):
        rotary = Rotary.of(spec, length + 2)

        def body(_, carry):
            tokens_BT, cache = carry
            position = cached + tokens_BT[:, :1] % 2  # follows from the last forward: none can be left out
            rotary_BT = rotary.at(position + jnp.arange(T)[None])
            x_BTD, cache = forward_cached(weights, cache, tokens_BT, rotary_BT, cached, mask_BTS)
            return jnp.argmax(weights.logits(x_BTD), axis=-1).astype(jnp.int32), cache

        return jax.lax.fori_loop(0, count, body, carry)

    empty = KVCache.empty(spec, B, length, weights.dtype)
    carry = jnp.ones((B, T), jnp.int32), jax.tree.map(jnp.zeros_like, empty)  # each layer's its own, to be donated

    def loop(count):
        nonlocal carry
        carry = run(weights, carry, count)
        return carry

    return loop
