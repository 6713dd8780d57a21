"""Prompts as the compiled programs take them: left-padded to few lengths, with a seed a row."""

from collections.abc import Sequence

import numpy as np

from edlm_jax.errors import InputError, check_range
from edlm_jax.models import ModelSpec

_SHORTEST = 8  # columns of the smallest prompt bucket: buckets double from here, so mixed lengths compile few programs


def pad_prompts(prompts: Sequence[Sequence[int]], block_length: int, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """(prompts_BP, pad_B): left-padded to end at column P, a multiple of the block length, from few sizes."""
    longest = max(map(len, prompts))
    P = bucket(longest, _SHORTEST)
    P = -(-(min(P, max_length) if longest <= max_length else longest) // block_length) * block_length
    pad_B = np.array([P - len(prompt) for prompt in prompts], np.int32)
    prompts_BP = np.zeros((len(prompts), P), np.int32)
    for row, prompt, pad in zip(prompts_BP, prompts, pad_B, strict=True):
        row[pad:] = prompt
    return prompts_BP, pad_B


def bucket(length: int, shortest: int) -> int:
    """The least of shortest, 2 shortest, 4 shortest ... that holds `length`: many lengths, few programs."""
    while shortest < length:
        shortest *= 2
    return shortest


def split_prompts(prompts: Sequence[Sequence[int]], block_length: int) -> tuple[list[list[int]], list[list[int]]]:
    """(whole blocks of each prompt, the rest of it)."""
    cuts = [len(prompt) // block_length * block_length for prompt in prompts]
    pairs = [(list(prompt[:cut]), list(prompt[cut:])) for prompt, cut in zip(prompts, cuts, strict=True)]
    return [whole for whole, _ in pairs], [rest for _, rest in pairs]


def row_seeds(seed: int | Sequence[int], count: int) -> np.ndarray:
    """uint32[count]: one a row, so that a row draws the same noise in any batch, however many follow it."""
    alone = isinstance(seed, int | np.integer)
    check_range("seed", min([seed] if alone else seed, default=0), 0)
    if alone:
        return np.random.SeedSequence(seed).generate_state(count)
    if len(seed) != count:
        raise InputError(f"seed: {len(seed)} seeds for {count} prompts; give one, or one a prompt")
    if max(seed, default=0) >= 2**32:
        raise InputError(f"seed: one a prompt must be below 2**32, not {max(seed)}")
    return np.asarray(seed, np.uint32)


def refuse_prompt(spec: ModelSpec, prompt: Sequence[int], max_new_tokens: int, mask_id: int | None) -> str | None:
    """What a prompt is that cannot be decoded, as the end of a sentence; `mask_id`: what none may hold, if anything."""
    if not len(prompt):
        return "is empty; give at least one token"
    if len(prompt) + max_new_tokens > spec.max_length:
        asked = f"{len(prompt)} tokens and {max_new_tokens} new ones"
        return f"is too long: {asked} exceed the model's cache of {spec.max_length}; shorten it or ask for fewer"
    if mask_id is not None and mask_id in prompt:
        return f"holds the mask token {mask_id}; remove it"
    if not all(0 <= token < spec.vocab_size for token in prompt):
        return f"holds a token outside the vocabulary of {spec.vocab_size}"
    return None
