"""Attention under the two-stream pattern, forward and backward: tiles against the split and dense masks, on one GPU.

    python -m tests.benchmarks.attention [--tiles 64x64 128x64 ...] [--json docs/benchmarks/attention_gpu.json]
    python -m tests.benchmarks.attention --interpret --length 96 --rows 1 --heads 2 --key-heads 1 --tiles 32x16

Not yet run on a GPU. The second line runs the kernels' Python on any machine: it shows that this program works, and its
times mean nothing.

Sides: `tiles` is `plan_triton`, once for each size of tile; `split` is what `attend` takes for short rows; `xla` and
`cudnn` are `jax.nn.dot_product_attention` with the whole mask. They take turns, and each is compared with the split in
float32 (largest difference over largest value, of the output and the three gradients). A side that fails, as for want
of memory, says so.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from edlm_jax.attention import CleanContext, Sight, Tiles
from edlm_jax.attention.intervals import key_runs, visits
from edlm_jax.attention.split import plan_split
from edlm_jax.attention.triton import plan_triton
from edlm_jax.benchmarks.attention import (
    attend_masked,
    forward_and_backward,
    random_arrays,
    take_turns,
    whole_mask,
)
from edlm_jax.reports.report import describe_machine


def main() -> None:
    """Measure and print; `--json` also writes the result."""
    args = parse()
    pattern = CleanContext(args.length, args.block_length)
    arrays, ids_BT = random_rows(args)
    programs = {name: forward_and_backward(side) for name, side in sides(args, pattern, ids_BT).items()}
    measured = take_turns({name: partial(program, *arrays) for name, program in programs.items()}, args.repeats)
    with jax.default_matmul_precision("highest"):  # a GPU's default for float32 is not
        exact = programs["split"](*(x.astype(jnp.float32) for x in arrays))
        reference = [np.asarray(x) for x in exact]
    for name, found in measured.items():
        if "error" not in found:
            found["difference"] = difference([np.asarray(x, np.float32) for x in programs[name](*arrays)], reference)
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


def sides(args, pattern, ids_BT) -> dict:
    """name -> function(q, k, v)"""
    sight = Sight(pattern, *ids_BT.shape, ids_BT.shape[1], ids_BT, ids_BT)
    tiled = {f"tiles {t.queries}x{t.keys}": plan_triton(sight, t, args.interpret) for t in args.tiles}
    mask_BTT = whole_mask(pattern, ids_BT)
    dense = {name: partial(attend_masked, mask_BTS=mask_BTT, implementation=name) for name in ("xla", "cudnn")}
    return tiled | {"split": plan_split(sight)} | dense


def random_rows(args):
    """([q, k, v, cotangent], segment ids) of rows of equally long documents, two streams."""
    each = -(-args.length // args.documents // args.block_length) * args.block_length
    ids_T = np.tile(np.arange(args.length, dtype=np.int32) // each + 1, 2)
    heads = (args.heads, args.key_heads, args.head_size)
    return random_arrays(args.rows, 2 * args.length, *heads, args.dtype), jnp.asarray(np.tile(ids_T, (args.rows, 1)))


def visited(pattern, ids_BT, tiles: Tiles) -> dict:
    """Of the first row's tiles, those that a kernel computes, and those of them that it need not mask."""
    ids_1T, length = ids_BT[:1], ids_BT.shape[1]
    pad = lambda x, size: jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, -length % size),), mode="edge")  # noqa: E731
    runs_1RT = pad(key_runs(pattern, 1, np.arange(length), length), tiles.queries)
    seen, whole = visits(runs_1RT, pad(ids_1T, tiles.queries), pad(ids_1T, tiles.keys), tiles.queries, tiles.keys)
    return {"of": seen.size, "seen": int(seen.sum()), "whole": int(whole.sum())}


def difference(results, reference) -> dict[str, float]:
    """The largest, over the largest value."""
    names = ("out", "dq", "dk", "dv")
    both = zip(names, results, reference, strict=True)
    return {name: float(np.abs(ours - theirs).max() / np.abs(theirs).max()) for name, ours, theirs in both}


if __name__ == "__main__":
    main()
