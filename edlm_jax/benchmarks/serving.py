"""How an engine does under load: so many clients, each of whom sends its next request when it has its answer.

The lengths of prompts and answers are those of serve_trace.csv, drawn once, evenly, of 8 to 400 and of 4 to 128 tokens;
a prompt ends as a task does (data/tasks.py), behind others with their answers.
"""

import csv
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edlm_jax.data.tokenized import Tokenized
from edlm_jax.decoding import Engine, RequestSettings

Requests = Sequence[tuple[list[int], int]]  # (prompt, its answer's length)


def trace_requests(tokenizer, count: int) -> Requests:
    """The first requests of the trace, in the tokens of this tokenizer."""
    with (Path(__file__).parent / "serve_trace.csv").open() as file:
        lengths = [(int(row["prompt"]), int(row["answer"])) for row in csv.DictReader(file)][:count]
    stream, ends = [], []
    for ((tokens_L, loss_mask_L),) in Tokenized(dict(kind="tasks", split="test", size=256 + count), tokenizer):
        ends.append(len(stream) + int((loss_mask_L == 0).sum()))
        stream += tokens_L.tolist()
    ends = [end for end in ends if end >= 400]
    return [(stream[end - prompt : end], answer) for end, (prompt, answer) in zip(ends, lengths, strict=False)]


def serve(engine: Engine, requests: Requests, clients: int) -> tuple[list[list[int]], dict[str, float]]:
    """(answers, numbers): tokens/s, and seconds to the first token and of each further one, by percentile."""
    waiting, asked, answers = deque(range(len(requests))), {}, [[] for _ in requests]
    firsts, others, forwards, begun = [], [], 0, time.perf_counter()
    while waiting or engine.live:
        while waiting and engine.live < clients:
            index = waiting.popleft()
            prompt, limit = requests[index]
            asked[engine.insert(prompt, RequestSettings(limit))] = index, time.perf_counter()
        events, now = engine.step(), time.perf_counter()
        for event in events:
            index, last = asked[event.slot]
            if answers[index]:
                others += [(now - last) / max(len(event.tokens), 1)] * len(event.tokens)
            else:
                firsts.append(now - last)
            answers[index] += event.tokens
            asked[event.slot] = index, now
            forwards += event.denoise_forwards + event.commit_forwards if event.finished else 0
    tokens, seconds = sum(map(len, answers)), time.perf_counter() - begun
    found = dict(tokens_per_second=tokens / seconds, tokens_per_forward=tokens / forwards)
    for name, times in (("first_token", firsts), ("token", others or firsts)):
        found |= {f"{name}_p50": float(np.percentile(times, 50)), f"{name}_p95": float(np.percentile(times, 95))}
    return answers, found


def measure_serving(
    engines: Mapping[str, Engine], requests: Requests, concurrency: Sequence[int], each: int
) -> dict[int, dict[str, dict[str, float]]]:
    """clients -> way -> what `serve` finds, ways one after the other: at least `each` requests, and four a client."""
    for engine in engines.values():
        engine.warm()
    found = {}
    for clients in concurrency:
        some = [requests[i % len(requests)] for i in range(max(each, 4 * clients))]
        for engine in engines.values():
            serve(engine, some[: 2 * clients], clients)  # steps find their size, rows theirs
        found[clients] = {name: serve(engine, some, clients)[1] for name, engine in engines.items()}
    return found
