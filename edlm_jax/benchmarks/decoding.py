"""How fast decoding is, side by side: AR, diffusion and, where torch is there, transformers' own generate."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from edlm_jax.decoding.ends import length_to_end
from edlm_jax.models import ModelSpec

Way = Callable[[list[list[int]]], list[list[int]]]  # prompts -> new tokens of each


def random_prompts(spec: ModelSpec, count: int, length: int) -> list[list[int]]:
    """So many prompts of random tokens, the mask token not among them; always the same ones."""
    mask_id = spec.conversion and spec.conversion.mask_token_id
    allowed = [token for token in range(spec.vocab_size) if token != mask_id]
    return [random.Random(row).choices(allowed, k=length) for row in range(count)]


def compare_rates(
    ways: Mapping[str, Way], prompts: Sequence[list[int]], batch_size: int, repeats: int
) -> dict[str, float]:
    """Generated tokens per second of each way, prompts taken `batch_size` at a time.

    Ways take turns, in an order drawn anew each time, and a batch's time is the median of its repeats. Each turn is two
    calls of which the second counts: the first one compiles, allocates, and brings back into the caches what the way
    before has driven out.
    """
    batches = [list(prompts[i : i + batch_size]) for i in range(0, len(prompts) - batch_size + 1, batch_size)]
    tokens, seconds = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0.0)
    for batch in batches:
        times: dict[str, list[float]] = {name: [] for name in ways}
        made: dict[str, int] = {}
        for repeat in range(repeats):
            for name in random.Random(repeat).sample(list(ways), len(ways)):
                ways[name](batch)
                start = time.perf_counter()
                new = ways[name](batch)
                times[name].append(time.perf_counter() - start)
                made[name] = sum(map(len, new))
        for name in ways:
            tokens[name] += made[name]
            seconds[name] += statistics.median(times[name])
    return {name: tokens[name] / seconds[name] for name in ways}


def waiting(forwards_R: Sequence[int], batch_size: int) -> float:
    """The share of rows' time that passes after their own end, until the slowest row beside them is done.

    From each row's forwards, as if all cost the same; rows are taken `batch_size` at a time, as `compare_rates` does.
    """
    whole = len(forwards_R) // batch_size * batch_size
    slowest = [max(forwards_R[i : i + batch_size]) for i in range(0, whole, batch_size)]
    return 1 - sum(forwards_R[:whole]) / (batch_size * sum(slowest))


def transformers_way(directory: str, *, dtype: str, max_new_tokens: int, eos_id: Sequence[int]) -> Way:
    """transformers' greedy generate of an AR model's directory, prompts padded on the left; needs torch."""
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    how = dict(dtype=getattr(torch, dtype), trust_remote_code=False)  # no code of a model's directory runs
    model = AutoModelForCausalLM.from_pretrained(directory, **how).to(device).eval()

    def generate(prompts):
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
        seen = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=seen,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=list(eos_id) or None,
                pad_token_id=0,
            )
        rows = out[:, longest:].tolist()
        return [row[: length_to_end(row, eos_id)] for row in rows]

    return generate

