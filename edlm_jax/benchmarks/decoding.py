"""Beside the speed of decoding: prompts, how long rows wait, and transformers' own generate, where torch is there."""

import random
from collections.abc import Sequence

from edlm_jax.decoding.ends import length_to_end
from edlm_jax.evaluation.compare import Call
from edlm_jax.models import ModelSpec


def random_prompts(spec: ModelSpec, count: int, length: int) -> list[list[int]]:
    """So many prompts of random tokens, the mask token not among them; always the same ones."""
    mask_id = spec.conversion and spec.conversion.mask_token_id
    allowed = [token for token in range(spec.vocab_size) if token != mask_id]
    return [random.Random(row).choices(allowed, k=length) for row in range(count)]


def waiting(forwards_R: Sequence[int], batch_size: int) -> float:
    """The share of rows' time that passes after their own end, until the slowest row beside them is done.

    From each row's forwards, as if all cost the same; rows are taken `batch_size` at a time, as `compare_rates` does.
    """
    whole = len(forwards_R) // batch_size * batch_size
    slowest = [max(forwards_R[i : i + batch_size]) for i in range(0, whole, batch_size)]
    return 1 - sum(forwards_R[:whole]) / (batch_size * sum(slowest))


def transformers_way(directory: str, *, dtype: str, max_new_tokens: int, eos_id: Sequence[int]) -> Call:
    """transformers' greedy generate of an AR model's directory, prompts padded on the left; needs torch."""
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    how = dict(dtype=getattr(torch, dtype), trust_remote_code=False)  # no code of a model's directory runs
    model = AutoModelForCausalLM.from_pretrained(directory, **how).to(device).eval()

    settings = dict(max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=list(eos_id) or None, pad_token_id=0)

    def generate(prompts):
        longest = max(map(len, prompts))
        padded = lambda rows: torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=device)  # noqa: E731
        seen = padded([[1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            rows = model.generate(input_ids=padded(prompts), attention_mask=seen, **settings)[:, longest:].tolist()
        return [row[: length_to_end(row, eos_id)] for row in rows]

    return generate
