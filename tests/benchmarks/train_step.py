"""The conversion step against torch + transformers with a dense SDPA mask, same weights and shape, in one process.

    .venv-parity/bin/python -m tests.benchmarks.train_step [--length 128] [--json docs/benchmarks/train_step_cpu.json]

`make test-parity` makes that virtual environment. Both sides do one AdamW step of the two-stream objective in float32
on all cores: forward over [noisy | clean], head on the noisy stream, cross-entropy over t, backward, clipping, update.
Both get the same noisy columns. Ours also chooses and draws them inside the step; torch gets them ready-made. The sides
take turns, and what counts is the ratio of each pair.
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
import transformers
from flax import nnx

from configs.quickstart import get_config
from edlm_jax.attention import CleanContext
from edlm_jax.evaluation.bench_train import packed_batch
from edlm_jax.evaluation.report import describe_machine
from edlm_jax.models.spec import ModelSpec
from edlm_jax.models.transformer import Transformer
from edlm_jax.training.objective import Objective, example_keys
from edlm_jax.training.optimizer import make_optimizer
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
    spec = ModelSpec.from_hf(json.loads((Path(c.init.path) / "config.json").read_text()))
    batch = packed_batch(spec.vocab_size, c.data.batch_size, c.data.length, c.objective.block_length)
    sides = {"edlm_jax": our_step(c, spec, batch), "torch": torch_step(c, spec, batch)}
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
        "shape": {"batch": c.data.batch_size, "length": c.data.length, "block_length": c.objective.block_length},
        "model": {"layers": spec.num_layers, "width": spec.width, "vocabulary": spec.vocab_size},
        "pairs": args.pairs,
        **describe_machine(),
        "torch": torch.__version__,
        "command": " ".join(["python -m tests.benchmarks.train_step", *sys.argv[1:]]),
    }
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def our_step(c, spec, batch):
    """The trainer's own jitted step."""
    graphdef, state = nnx.split(Transformer(spec, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(state)
    held = [TrainState(jax.numpy.int32(0), params, make_optimizer(c).init(params))]
    objective = Objective.from_config(c, mask_id=6)
    shardings = jax.tree.map(lambda x: x.sharding, held[0])
    train_step = make_train_step(c, graphdef, objective, shardings)

    def step():
        held[0], metrics = train_step(held[0], batch, block_length=c.objective.block_length)
        return float(metrics["loss"])

    return step


def torch_step(c, spec, batch):
    """The same work by transformers' Qwen3 with SDPA and the dense mask of both streams, corruption given."""
    if c.objective.alignment != "same_position":
        raise SystemExit("the torch side knows the same-position alignment alone")
    objective = Objective.from_config(c, mask_id=6)
    noise = objective.corrupt(example_keys(jax.random.key(0), len(batch["tokens"])), batch)
    (B, L), M = batch["tokens"].shape, noise.noisy_BM.shape[1]
    copies_BM = np.tile(np.arange(L), (B, 1)) if noise.copies_BM is None else np.array(noise.copies_BM)
    noisy, masked, level = (torch.from_numpy(np.array(x)) for x in noise[:3])
    both = lambda x_BL: np.concatenate([np.take_along_axis(x_BL, copies_BM, axis=1), x_BL], axis=1)  # noqa: E731
    segments_BT, positions_BT = both(batch["segment_ids"]), both(batch["positions"])
    # In the row that has every block's noisy copy once, these are the columns of ours.
    columns_BT = np.concatenate([copies_BM, np.tile(np.arange(L, 2 * L), (B, 1))], axis=1)
    dense = CleanContext(L, c.objective.block_length).dense(2 * L, 2 * L)
    allowed_BTT = dense[columns_BT[:, :, None], columns_BT[:, None, :]]
    allowed_BTT &= segments_BT[:, :, None] == segments_BT[:, None, :]
    slot_T = np.concatenate([np.arange(M), np.full(L, -1)]) // c.objective.block_length
    allowed_BTT &= (slot_T[:, None] == slot_T[None]) | (slot_T < 0)[None]  # two views of a block do not mix
    tokens = torch.from_numpy(np.take_along_axis(batch["tokens"], copies_BM, axis=1)).long()
    inputs = dict(
        input_ids=torch.cat([noisy.long(), torch.from_numpy(batch["tokens"]).long()], 1),
        position_ids=torch.from_numpy(positions_BT).long(),
        attention_mask=torch.from_numpy(allowed_BTT)[:, None],
        use_cache=False,
    )
    config = transformers.Qwen3Config(**json.loads(spec.hf_json), attn_implementation="sdpa")
    model = transformers.Qwen3ForCausalLM(config).float().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)

    def step():
        hidden = model.model(**inputs).last_hidden_state[:, :M]
        logits = model.lm_head(hidden).flatten(0, 1)
        ce = torch.nn.functional.cross_entropy(logits, tokens.flatten(), reduction="none").view(B, M)
        loss = (ce / level * masked).sum() / masked.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


if __name__ == "__main__":
    main()
