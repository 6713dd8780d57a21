"""Do the lossless modes give AR's greedy tokens on 1,000 held-out prompts, in float32, whatever their drafts are?

    python -m tests.benchmarks.lossless [--prompts 1000] [--json docs/benchmarks/lossless_epyc.json]

The quickstart's AR model with drafters that nobody trained: masks in blocks, and adapters of random numbers on uniform
random tokens, in blocks that are causal inside (Uno). `as_ar` counts the prompts whose tokens are all AR's.
"""

import argparse
import dataclasses
import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from configs.quickstart import AR_MODEL
from edlm_jax.decoding import Decoder, parse_mode
from edlm_jax.evaluation.batches import decode_batches
from edlm_jax.evaluation.tasks import load_tasks
from edlm_jax.models import Conversion
from edlm_jax.pretrained import Text, load_pretrained, load_tokenizer
from edlm_jax.reports.report import describe_machine
from tests.decoding.tiny import with_gate

LIMIT, MASK = 48, 6  # new tokens; an id that the model has no use for
LINEAR, QUADRATIC = "self_speculation:drafts=", "quadratic_speculation:drafts=3"
DRAFTERS = {  # (pattern, alignment, noise, whether there are adapters), modes
    "masks": (
        ("semi_block", "shifted", "masks", False),
        ["prompt_lookup", LINEAR + "1", LINEAR + "7", LINEAR + "15", QUADRATIC],
    ),
    "masks, own places": (("semi_block", "same_position", "masks", False), [LINEAR + "7", QUADRATIC]),
    "adapters": (
        ("causal_block", "shifted", "uniform_tokens", True),
        [LINEAR + "3", LINEAR + "7", LINEAR + "7,lookup=2", QUADRATIC],
    ),
}


def main() -> None:
    """Decode and count; `--json` also writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1000, help="held-out tasks (1000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    tokenizer = load_tokenizer(AR_MODEL)
    (task,) = load_tasks([{"kind": "tasks", "split": "test", "size": args.prompts}], tokenizer)
    prompts = [question.prompt for question in task.questions]
    model = load_pretrained(AR_MODEL, dtype="float32")
    how = dict(limit=LIMIT, ends=Text.of(model.spec, tokenizer).ends)
    how |= dict(batch_size=100)
    ar, found = decode_batches(Decoder(model), prompts, mode=parse_mode("ar"), **how), {}
    for name, ((pattern, alignment, noise, gated), modes) in DRAFTERS.items():
        conversion = Conversion(MASK, 8, pattern=pattern, alignment=alignment, noise=noise)
        model.spec = dataclasses.replace(model.spec, conversion=conversion)
        decoder = Decoder(with_gate(model, np.random.default_rng(0)) if gated else model)
        for text in modes:
            start = time.perf_counter()
            rows = decode_batches(decoder, prompts, mode=parse_mode(text), **how)
            as_ar = sum(a.tokens == b.tokens for a, b in zip(rows, ar, strict=True))
            per_forward = sum(len(row.tokens) for row in rows) / sum(row.denoise_forwards for row in rows)
            found[f"{name}: {text}"] = dict(as_ar=as_ar, tokens_per_forward=per_forward)
            seconds = time.perf_counter() - start
            print(f"{name:20}{text:40}{as_ar:6} of {len(prompts)}{per_forward:8.2f}{seconds:8.1f} s", flush=True)
    command = " ".join(["python -m tests.benchmarks.lossless", *sys.argv[1:]])
    result = dict(prompts=len(prompts), new_tokens=LIMIT, modes=found, **describe_machine(), command=command)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
