"""The conversion step against torch + transformers with a dense SDPA mask, same weights and shape, in one process.

    .venv-parity/bin/python -m tests.benchmarks.train_step [--length 128] [--json docs/benchmarks/train_step_epyc.json]

`make test-parity` makes that virtual environment. Both sides do one AdamW step of the two-stream objective in float32
on all cores: forward over [noisy | clean], head on the noisy stream, cross-entropy over t, backward, clipping, update.
Both get the same noisy columns. Ours also chooses and draws them inside the step; torch gets them ready-made. The sides
take turns, and what counts is the ratio of each pair. `product_gflops` says how fast each library multiplies two
matrices of 1024 x 1024 on all cores: how much of the ratio is theirs.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np
import torch
from flax import nnx

from configs.quickstart import get_config
from edlm_jax.benchmarks.attention import take_turns
from edlm_jax.benchmarks.torch_peer import torch_step
from edlm_jax.benchmarks.training import packed_batch
from edlm_jax.models.transformer import Transformer
from edlm_jax.reports.report import describe_machine
from edlm_jax.training.initial import planned_spec
from edlm_jax.training.optimizer import make_optimizer
from edlm_jax.training.run import Run
from edlm_jax.training.step import TrainState, make_train_step


def main() -> None:
    """Measure and print; `--json` also writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, help="tokens of a row, each copied (default: the quickstart's)")
    parser.add_argument("--batch-size", type=int, help="rows (default: the quickstart's)")
    parser.add_argument("--pairs", type=int, default=15, help="measured pairs of steps (15)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    args = parser.parse_args()
    c = get_config()
    c.data.length, c.data.batch_size = args.length or c.data.length, args.batch_size or c.data.batch_size
    if args.length:
        c.objective.noisy_length = 0  # of another length, every block once
    run = Run.of(c)
    spec, data = planned_spec(run.start), run.data
    batch = packed_batch(spec.vocab_size, data.batch_size, data.length, data.block_length)
    peer = torch_step(run, spec, batch, attention="sdpa", device="cpu")
    sides = {"edlm_jax": our_step(run, spec, batch), "torch": peer}
    for step in sides.values():
        step(), step()  # compile, allocate
    seconds = {name: [] for name in sides}
    for _ in range(args.pairs):
        for name, step in sides.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    ratios = [theirs / ours for theirs, ours in zip(seconds["torch"], seconds["edlm_jax"], strict=True)]
    result = {
        "what": "one conversion step, torch + transformers with dense SDPA mask / edlm_jax (above 1: ours is faster)",
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "shape": {"batch": data.batch_size, "length": data.length, "block_length": data.block_length},
        "model": {"layers": spec.num_layers, "width": spec.width, "vocabulary": spec.vocab_size},
        "pairs": args.pairs,
        "product_gflops": product_gflops(),
        **describe_machine(),
        "torch": torch.__version__,
        "command": " ".join(["python -m tests.benchmarks.train_step", *sys.argv[1:]]),
    }
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def product_gflops(size: int = 1024) -> dict[str, float]:
    """The fastest of 20 products by each library."""
    a_np = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    a_jax, a_torch, multiply = jax.numpy.asarray(a_np), torch.from_numpy(a_np), jax.jit(jax.numpy.matmul)
    products = {"edlm_jax": lambda: multiply(a_jax, a_jax), "torch": lambda: a_torch @ a_torch}
    found = take_turns(products, repeats=20)
    return {name: 2 * size**3 / found[name]["fastest"] / 1e6 for name in products}


def our_step(run, spec, batch):
    """The trainer's own jitted step."""
    graphdef, state = nnx.split(Transformer(spec, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(state)
    held = [TrainState(jax.numpy.int32(0), params, make_optimizer(run.optimizer).init(params))]
    shardings = jax.tree.map(lambda x: x.sharding, held[0])
    train_step = make_train_step(graphdef, run.objective.of_model(spec), run.optimizer, shardings, remat=run.remat)

    def step():
        held[0], metrics = train_step(held[0], batch, run.numbers, block_length=run.data.block_length)
        return float(metrics["loss"])

    return step


if __name__ == "__main__":
    main()
