"""Many prompts decoded batch by batch: one batch shape, so that one compiled program serves a whole file."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from edlm_jax.decoding import Decoder
from edlm_jax.decoding.prompts import row_seeds
from edlm_jax.errors import InputError


@dataclass(frozen=True)
class Decoded:
    """What one prompt became, and the forwards that its row took."""

    tokens: list[int]
    text: str | None  # where the decoder got a `detokenize`
    denoise_forwards: int
    commit_forwards: int
    accepted_at: list[int]  # for each token, the row's forward that accepted it


def decode_batches(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int,
    seeds: Sequence[int] | None = None,
    on_batch: Callable[[int], None] | None = None,
    **decoding,
) -> list[Decoded]:
    """Every prompt's result, in the order of the prompts.

    Args:
      batch_size: rows decoded at a time; the last batch is filled up with rows that count for nothing.
      seeds: one a prompt (default: those of seed 0), so that a prompt draws the same noise in any batch.
      on_batch: called after each batch with the number of prompts that are finished.
      decoding: the decoder's other arguments: mode, limit, ends ...

    Raises:
      InputError: a prompt that cannot be decoded, by its index in `prompts`.
    """
    decoded: dict[int, Decoded] = {}
    for batch in decode_each(decoder, prompts, batch_size=batch_size, seeds=seeds, **decoding):
        decoded |= batch
        if on_batch is not None:
            on_batch(len(decoded))
    return [decoded[i] for i in range(len(prompts))]


def decode_each(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int,
    seeds: Sequence[int] | None = None,
    **decoding,
) -> Iterator[dict[int, Decoded]]:
    """As `decode_batches`, batch by batch: the results by their prompts' indices."""
    for reason in decoder.refuse(prompts, **decoding).values():  # before the first batch, and by its own index
        raise InputError(reason)
    seeds = prompt_seeds(0, len(prompts)) if seeds is None else seeds
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # alike lengths together: little padding
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        filled = list(itertools.islice(itertools.cycle(chosen), batch_size))
        result = decoder([prompts[i] for i in filled], seed=[seeds[i] for i in filled], **decoding)
        texts = result.texts or [None] * batch_size
        counts = (result.row_denoise_forwards, result.row_commit_forwards, result.accepted_at)
        rows = zip(result.tokens, texts, *counts, strict=True)
        yield {i: Decoded(*row) for i, row in zip(chosen, rows, strict=False)}


def prompt_seeds(seed: int, count: int) -> list[int]:
    """One seed a prompt, as the decoder draws them from one: a prompt's own does not depend on how many follow."""
    return row_seeds(seed, count).tolist()
