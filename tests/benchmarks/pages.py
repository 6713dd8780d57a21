"""What an engine's caches in pages give on CPU: prompts that begin alike, and rows of different lengths in less memory.

    python -m tests.benchmarks.pages --model=runs/quickstart/model --mode=ar --mode=diffusion:threshold=0.95

Alike: 64 prompts of 256 tokens in common and 16 of their own, 32 new ones each; beside them as many that have nothing
in common. Mixed: the requests of `tests.benchmarks.engine`, with room for all slots and fractions of it. Everything
is compiled before; the ways take turns.
"""

import statistics

import numpy as np

from edlm_jax.benchmarks.serving import serve
from edlm_jax.decoding import Engine, parse_mode
from tests.benchmarks.engine import main

FRACTIONS = 1.0, 0.5, 0.25


def alike(vocab_size, common, rng, count=64):
    """Requests of 272 tokens, so many of which are in common, with 32 new ones."""
    draw = lambda n: rng.integers(0, vocab_size - 1, n).tolist()  # noqa: E731
    begin = draw(common)
    return [(begin + draw(272 - common), 32) for _ in range(count)]


def measure(decoder, text, mixed, args):
    full = Engine(decoder, parse_mode(text), slots=args.slots, columns=528).cache.columns
    numbers = decoder.weights.spec
    column_bytes = 2 * 4 * numbers.num_layers * numbers.num_kv_heads * numbers.head_dim
    engines = {part: make_engine(decoder, text, args.slots, int(full * part)) for part in FRACTIONS}
    rng, vocab_size = np.random.default_rng(0), numbers.vocab_size
    ways = {}
    for _ in range(args.repeats):
        for name, common in (("alike", 256), ("different", 0)):  # new prompts each time: none is known from before
            run(ways, name, engines[1.0], alike(vocab_size, common, rng), args)
        answers = [run(ways, f"mixed, {part}", engine, mixed, args) for part, engine in engines.items()]
        assert all(answer == answers[0] for answer in answers), "fewer pages gave other tokens"
    return {
        name: {key: statistics.median(way[key] for way in runs) for key in runs[0]}
        | dict(cache_mib=round(runs[0]["cache_columns"] * column_bytes / 2**20, 1))
        for name, runs in ways.items()
    }


def make_engine(decoder, text, slots, columns):
    engine = Engine(decoder, parse_mode(text), slots=slots, columns=528, cache_columns=columns)
    engine.warm()
    return engine


def run(ways, name, engine, requests, args):
    """The answers; what they took goes to the ways."""
    before, used, step = engine.cache.shared, [0], engine.step

    def watched():
        events = step()
        used.append(engine.cache.used)
        return events

    engine.step = watched
    answers, numbers = serve(engine, requests, args.slots)
    engine.step = step
    found = {key: numbers[key] for key in ("tokens_per_second", "first_token_p50", "first_token_p95")}
    found |= dict(prompt_columns=sum(len(prompt) for prompt, _ in requests), shared=engine.cache.shared - before)
    ways.setdefault(name, []).append(found | dict(cache_columns=engine.cache.columns, most_used=max(used)))
    return answers


if __name__ == "__main__":
    main(__doc__, "found", measure)
