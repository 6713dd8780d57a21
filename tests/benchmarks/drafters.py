"""Adapters, prompt lookup and both as drafters of SmolLM2-135M-Instruct's own greedy text, on held-out questions; or
any modes of another model of its kind, beside AR.

    python -m tests.benchmarks.drafters [--prompts 100] [--json docs/benchmarks/smollm2_drafters_xeon.json]
    python -m tests.benchmarks.drafters --model=runs/smollm2_conversion/model --modes mars mars:block_length=2

Ways take turns on each question, in an order drawn anew; speeds are of whole calls. By place: whether the two tokens
before a forward's first new one stood earlier in the row, so that lookup had something to draft there.
"""

import argparse
import json
import random
import sys
import time
from collections import defaultdict
from pathlib import Path

from edlm_jax.data.questions import questions
from edlm_jax.decoding import Decoder, parse_mode
from edlm_jax.decoding.generation import Generation
from edlm_jax.pretrained import Text, load_pretrained, load_tokenizer
from edlm_jax.pretrained.chat import encode_prompt
from edlm_jax.reports.report import describe_machine

ADAPTED = "quadratic_speculation:drafts=1"
MODES = ("prompt_lookup:drafts=3", ADAPTED, ADAPTED + ",ahead=1,lookup=2")
LIMIT = 64  # new tokens


def forwards_by_place(prompt: list[int], made: Generation) -> dict[str, tuple[int, int]]:
    """(tokens, forwards) that began where the last two tokens had stood before, and where they had not."""
    found, row = {"repeated": [0, 0], "new": [0, 0]}, list(prompt)
    (tokens,), (accepted_at,) = made.tokens, made.accepted_at
    before, place = None, "new"
    for token, forward in zip(tokens, accepted_at, strict=True):
        if forward != before:
            pairs = list(zip(row, row[1:], strict=False))
            place = "repeated" if pairs and pairs[-1] in pairs[:-1] else "new"
            found[place][1] += 1
        found[place][0] += 1
        row.append(token)
        before = forward
    return {name: (tokens, forwards) for name, (tokens, forwards) in found.items()}


def main() -> None:
    """Decode, time and count; `--json` also writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a model with adapters that draft (smollm2)")
    parser.add_argument("--prompts", type=int, default=100, help="held-out questions (100)")
    parser.add_argument("--modes", nargs="+", default=MODES, metavar="MODE", help="beside ar (adapters' and lookup's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    args = parser.parse_args()
    modes = ("ar", *args.modes)
    tokenizer, dice = load_tokenizer(args.model), random.Random(0)
    decoder = Decoder(load_pretrained(args.model, "float32"))
    ends, asked = Text.of(decoder.spec, tokenizer).ends, questions("test", args.prompts)
    prompts = [encode_prompt(tokenizer, question, bool(tokenizer.chat_template)) for question in asked]
    seconds, tokens, forwards, same = (defaultdict(int) for _ in range(4))
    places = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for number, prompt in enumerate(prompts, 1):
        made = {}
        for mode in dice.sample(modes, len(modes)):
            for _ in range(2 if number == 1 else 1):  # the first one compiles
                start = time.perf_counter()
                made[mode] = decoder([prompt], parse_mode(mode), limit=LIMIT, ends=ends)
                took = time.perf_counter() - start
            seconds[mode] += took
        for mode, result in made.items():
            tokens[mode] += len(result.tokens[0])
            forwards[mode] += result.denoise_forwards
            same[mode] += result.tokens == made["ar"].tokens
            for place, counts in forwards_by_place(prompt, result).items():
                places[mode][place] = [a + b for a, b in zip(places[mode][place], counts, strict=True)]
        rates = {mode: round(tokens[mode] / seconds[mode], 1) for mode in modes}
        print(f"{number} of {len(prompts)}", rates, flush=True)
    found = {
        mode: dict(
            same_text=same[mode],
            tokens_per_second=tokens[mode] / seconds[mode],
            of_ar=tokens[mode] / seconds[mode] * seconds["ar"] / tokens["ar"],
            tokens_per_forward=tokens[mode] / forwards[mode],
            tokens_per_forward_by_place={place: a / max(b, 1) for place, (a, b) in places[mode].items()},
            forwards_by_place={place: b for place, (_, b) in places[mode].items()},
        )
        for mode in modes
    }
    command = " ".join(["python -m tests.benchmarks.drafters", *sys.argv[1:]])
    asked = dict(model=args.model, prompts=len(prompts), new_tokens=LIMIT)
    result = dict(**asked, modes=found, **describe_machine(), command=command)
    print(json.dumps(found, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
