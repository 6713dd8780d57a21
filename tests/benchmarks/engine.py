"""Tokens/s of the engine and of batches, on the requests of a committed trace, with the same tokens.

    python -m tests.benchmarks.engine --model=runs/quickstart/model --mode=ar --mode=diffusion:threshold=0.95

256 prompts of 8 to 400 tokens with answers of 4 to 128; 32 rows at a time. Batches are of prompts of alike lengths,
each decoded to its longest answer. Everything is compiled before; the ways take turns.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from edlm_jax.benchmarks.serving import serve, trace_requests
from edlm_jax.decoding import Decoder, Engine, parse_mode
from edlm_jax.pretrained import load_pretrained, load_tokenizer
from edlm_jax.reports.report import describe_machine


def main(doc: str | None, name: str, measure: Callable[..., Any]) -> None:
    """Prints what `measure(decoder, text, requests, args)` finds of each mode, under this name, as JSON."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--mode", action="append", required=True)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    decoder = Decoder(load_pretrained(args.model, dtype="float32"), take=True)
    requests = trace_requests(load_tokenizer(args.model), args.prompts)
    found = {text: measure(decoder, text, requests, args) for text in args.mode}
    print(json.dumps(vars(args) | {name: found} | describe_machine(), indent=1))


def measure(decoder, text, requests, args):
    mode = parse_mode(text)
    if mode.name in ("edit", "dmax"):  # a lower limit changes what they leave standing, and batches have the longest
        raise SystemExit(f"{mode.name} revises tokens up to a row's end: batches' answers cut short are not its own")
    engine = Engine(decoder, mode, slots=args.slots, columns=528)
    engine.warm()
    in_batches(decoder, mode, requests, args.slots)
    batches, engines = [], []
    for _ in range(args.repeats):
        start = time.perf_counter()
        expected = in_batches(decoder, mode, requests, args.slots)
        batches.append(sum(map(len, expected)) / (time.perf_counter() - start))
        answers, numbers = serve(engine, requests, args.slots)
        assert answers == expected, "the engine gave other tokens"
        engines.append(numbers["tokens_per_second"])
    rates = dict(batches=statistics.median(batches), engine=statistics.median(engines))
    return rates | dict(ratio=rates["engine"] / rates["batches"], runs=dict(batches=batches, engine=engines))


def in_batches(decoder, mode, requests, size):
    """The answers by batches of alike prompts, each as long as its longest answer."""
    order, answers = sorted(range(len(requests)), key=lambda i: len(requests[i][0])), {}
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        limit = max(requests[i][1] for i in chosen)
        rows = decoder([requests[i][0] for i in chosen], mode, limit=limit, seed=[0] * len(chosen)).tokens
        answers |= {i: row[: requests[i][1]] for i, row in zip(chosen, rows, strict=True)}
    return [answers[i] for i in range(len(requests))]


if __name__ == "__main__":
    main(__doc__, "tokens_per_second", measure)
