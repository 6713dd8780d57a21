"""Attention under the two-stream pattern, forward and backward: tiles against the split and dense masks, on one GPU.

    python -m tests.benchmarks.attention [--tiles 64x64 128x64 ...] [--json docs/benchmarks/attention_gpu.json]
    python -m tests.benchmarks.attention --interpret --length 96 --rows 1 --heads 2 --key-heads 1 --tiles 32x16

Not yet run on a GPU. The second line runs the kernels' Python on any machine: it shows that this program works, and its
times mean nothing.

Sides: `tiles` is `attend_triton`, once for each size of tile; `split` is what `attend` takes for short rows; `xla` and
`cudnn` are `jax.nn.dot_product_attention` with the whole mask. Each is first compared with the split in float32
(largest difference over largest value, of the output and the three gradients), and then they take turns. A side that
fails, as for want of memory, says so.
"""

import argparse
import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from edlm_jax.attention import CleanContext, Tiles, attend_triton, same_segment
from edlm_jax.attention.attend import _attend_split
from edlm_jax.attention.intervals import key_runs, visits
from edlm_jax.evaluation.report import describe_machine


def main() -> None:
    """Measure and print; `--json` also writes the result."""
    args = parse()
    pattern = CleanContext(args.length, args.block_length)
    arrays, ids_BT = random_rows(args)
    measured, programs = {}, {}
    with jax.default_matmul_precision("highest"):  # a GPU's default for float32 is not
        exact = forward_and_backward(partial(_attend_split, copies_BM=None), pattern, ids_BT)
        reference = [np.asarray(x) for x in exact(*(x.astype(jnp.float32) for x in arrays))]
    for name, function in sides(args).items():
        program = forward_and_backward(function, pattern, ids_BT)
        try:
            results = [np.asarray(x, np.float32) for x in program(*arrays)]
        except Exception as error:  # noqa: BLE001 (out of memory, or not on this machine: the others still count)
            measured[name] = {"error": str(error).splitlines()[0][:200]}
            continue
        measured[name] = {"difference": difference(results, reference)}
        programs[name] = partial(program, *arrays)
    for name, seconds in take_turns(programs, args.repeats).items():
        measured[name] |= {"milliseconds": 1e3 * statistics.median(seconds), "fastest": 1e3 * min(seconds)}
    result = {
        "what": "attention of one layer under CleanContext, forward and backward, packed rows",
        "sides": measured,
        "tiles_visited": {f"{t.queries}x{t.keys}": visited(pattern, ids_BT, t) for t in args.tiles},
        "shape": {key: getattr(args, key) for key in SHAPE},
        "interpret": args.interpret,
        **describe_machine(),
        "command": " ".join(["python -m tests.benchmarks.attention", *sys.argv[1:]]),
    }
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


SHAPE = dict(length=4096, block_length=16, rows=2, documents=4, heads=32, key_heads=8, head_size=128)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in SHAPE.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default, help=f"({default})")
    parser.add_argument("--dtype", default="bfloat16", help="(bfloat16)")
    tiles = lambda text: Tiles(*(int(size) for size in text.split("x")))  # noqa: E731
    parser.add_argument("--tiles", type=tiles, nargs="+", default=[Tiles(64, 64)], metavar="QxK", help="(64x64)")
    parser.add_argument("--repeats", type=int, default=20, help="measured calls of each side (20)")
    parser.add_argument("--interpret", action="store_true", help="run the kernels' Python, on any machine")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    return parser.parse_args()


def sides(args) -> dict:
    """name -> function(q, k, v, pattern, segment ids)"""
    tiled = {
        f"tiles {tiles.queries}x{tiles.keys}": partial(attend_triton, tiles=tiles, interpret=args.interpret)
        for tiles in args.tiles
    }
    dense = {name: partial(dense_mask, implementation=name) for name in ("xla", "cudnn")}
    return tiled | {"split": partial(_attend_split, copies_BM=None)} | dense


def dense_mask(q_BTNH, k_BSKH, v_BSKH, *, pattern, q_segments_BT, k_segments_BS, implementation):
    """What a framework without kernels of its own does."""
    mask_BTS = jnp.asarray(pattern.dense(q_BTNH.shape[1], k_BSKH.shape[1]))[None]
    mask_BTS = mask_BTS & same_segment(q_segments_BT, k_segments_BS)
    return jax.nn.dot_product_attention(q_BTNH, k_BSKH, v_BSKH, mask=mask_BTS[:, None], implementation=implementation)


def forward_and_backward(function, pattern, ids_BT):
    """(q, k, v, cotangent) -> (out, dq, dk, dv)"""

    @jax.jit
    def program(q_BTNH, k_BSKH, v_BSKH, weight_BTNH):
        attention = partial(function, pattern=pattern, q_segments_BT=ids_BT, k_segments_BS=ids_BT)
        out_BTNH, backward = jax.vjp(attention, q_BTNH, k_BSKH, v_BSKH)
        return out_BTNH, *backward(weight_BTNH)

    return program


def random_rows(args):
    """([q, k, v, cotangent], segment ids) of rows of equally long documents, two streams."""
    sizes = [args.heads, args.key_heads, args.key_heads, args.heads]
    keys = jax.random.split(jax.random.key(0), len(sizes))
    shape = lambda heads: (args.rows, 2 * args.length, heads, args.head_size)  # noqa: E731
    arrays = [
        jax.random.normal(key, shape(heads), jnp.float32).astype(args.dtype)
        for key, heads in zip(keys, sizes, strict=True)
    ]
    each = -(-args.length // args.documents // args.block_length) * args.block_length
    ids_T = np.tile(np.arange(args.length, dtype=np.int32) // each + 1, 2)
    return arrays, jnp.asarray(np.tile(ids_T, (args.rows, 1)))


def visited(pattern, ids_BT, tiles: Tiles) -> dict:
    """Of the first row's tiles, those that a kernel computes, and those of them that it need not mask."""
    ids_1T, length = ids_BT[:1], ids_BT.shape[1]
    pad = lambda x, size: jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, -length % size),), mode="edge")  # noqa: E731
    runs_1RT = pad(key_runs(pattern, 1, length, length), tiles.queries)
    seen, whole = visits(runs_1RT, pad(ids_1T, tiles.queries), pad(ids_1T, tiles.keys), tiles.queries, tiles.keys)
    return {"of": seen.size, "seen": int(seen.sum()), "whole": int(whole.sum())}


def difference(results, reference) -> dict[str, float]:
    """The largest, over the largest value."""
    names = ("out", "dq", "dk", "dv")
    both = zip(names, results, reference, strict=True)
    return {name: float(np.abs(ours - theirs).max() / np.abs(theirs).max()) for name, ours, theirs in both}


def take_turns(programs: dict, repeats: int) -> dict[str, list[float]]:
    """Seconds of each call."""
    seconds = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            seconds[name].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
