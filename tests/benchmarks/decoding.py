"""What a forward of 1, C and 2C columns costs, and what a fused commit saves, at the quickstart's size and a real one.

    python -m tests.benchmarks.decoding [--models quickstart qwen3-0.6b] [--json docs/benchmarks/decoding_epyc.json]

Random weights, float32, batch 1, 64 new tokens of one prompt by the rule that accepts so many a forward, whatever they
are: no EOS, so that every call has the same forwards. The ways take turns, and a ratio is one of medians.

`forward_ratio`: a forward of so many columns over one of a single column, head included. `of_ideal`: diffusion's
tokens/s over tokens per forward times AR's. `separate_over_fused`: above 1 the fused commit is faster.
"""

import argparse
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from flax import nnx

from configs.quickstart import AR_MODEL
from configs.qwen3_0_6b import QWEN3_0_6B
from edlm_jax.benchmarks.attention import take_turns
from edlm_jax.benchmarks.forward import forward_seconds
from edlm_jax.decoding import Decoder, generate
from edlm_jax.models import ModelSpec, Transformer
from edlm_jax.models.spec import Conversion
from edlm_jax.reports.report import describe_machine

MODELS = {"quickstart": json.loads(Path(AR_MODEL, "config.json").read_text()), "qwen3-0.6b": QWEN3_0_6B}
BLOCK_LENGTH, NEW_TOKENS, PROMPT = 8, 64, list(range(10, 26))
ACCEPTED = (2, 4, 8)


def main() -> None:
    """Measure and print; `--json` also writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="shapes (all)")
    parser.add_argument("--repeats", type=int, default=15, help="turns (15)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    args = parser.parse_args()
    result = {
        "what": "forwards by their width, and decoding with fused and separate commits; random weights, batch 1",
        "models": {name: measure(MODELS[name], args.repeats) for name in args.models},
        **describe_machine(),
        "command": " ".join(["python -m tests.benchmarks.decoding", *sys.argv[1:]]),
    }
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def measure(config: dict, repeats: int) -> dict:
    """Of one shape."""
    # As if trained for both: AR decoding then has nothing to warn of.
    conversion = Conversion(mask_token_id=1, block_length=BLOCK_LENGTH, pattern="semi_block")
    decoder = Decoder(Transformer(replace(ModelSpec.from_hf(config), conversion=conversion), rngs=nnx.Rngs(0)))
    widths = (1, BLOCK_LENGTH, 2 * BLOCK_LENGTH)
    forwards = forward_seconds(decoder.weights, widths, cached=len(PROMPT) + NEW_TOKENS)
    decode = partial(generate, decoder, [PROMPT], max_new_tokens=NEW_TOKENS)
    ways = {"ar": lambda: decode(mode="ar").tokens}
    for tokens in ACCEPTED:
        for commit in ("fused", "separate"):
            how = dict(rule=f"fixed:{tokens}", commit=commit)
            ways[f"{tokens} {commit}"] = lambda how=how: decode(**how).tokens
    found = take_turns(ways, repeats)
    if failed := [f"{name}: {way['error']}" for name, way in found.items() if "error" in way]:
        sys.exit("; ".join(failed))
    milliseconds = {name: way["milliseconds"] for name, way in found.items()}
    fused = {tokens: milliseconds[f"{tokens} fused"] for tokens in ACCEPTED}
    return {
        "forward_milliseconds": {width: 1e3 * seconds for width, seconds in forwards.items()},
        "forward_ratio": {width: seconds / forwards[1] for width, seconds in forwards.items()},
        "milliseconds": milliseconds,
        "of_ideal": {tokens: milliseconds["ar"] / fused[tokens] / tokens for tokens in ACCEPTED},
        "separate_over_fused": {tokens: milliseconds[f"{tokens} separate"] / fused[tokens] for tokens in ACCEPTED},
    }


if __name__ == "__main__":
    main()
