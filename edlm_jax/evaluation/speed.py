"""How fast ways of decoding are, side by side."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Call = Callable[[list[list[int]]], list[list[int]]]  # prompts -> new tokens of each


def compare_rates(
    ways: Mapping[str, Call],
    prompts: Sequence[list[int]],
    batch_size: int,
    repeats: int,
    on_batch: Callable[[int], None] = lambda count: None,
) -> dict[str, float]:
    """Generated tokens per second of each way, prompts taken `batch_size` at a time.

    Ways take turns, in an order drawn anew each time, and a batch's time is the median of its repeats. Each turn is two
    calls of which the second counts: the first one compiles, allocates, and brings back into the caches what the way
    before has driven out. `on_batch` is called with the number of batches that are finished.
    """
    batches = [list(prompts[i : i + batch_size]) for i in range(0, len(prompts) - batch_size + 1, batch_size)]
    tokens, seconds, dice = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0.0), random.Random(0)
    for count, batch in enumerate(batches, 1):
        times, made = {name: [] for name in ways}, {}
        for _ in range(repeats):
            for name in dice.sample(list(ways), len(ways)):
                ways[name](batch)
                start = time.perf_counter()
                new = ways[name](batch)
                times[name].append(time.perf_counter() - start)
                made[name] = sum(map(len, new))
        for name in ways:
            tokens[name] += made[name]
            seconds[name] += statistics.median(times[name])
        on_batch(count)
    return {name: tokens[name] / seconds[name] for name in ways}
