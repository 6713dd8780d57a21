"""Many prompts decoded with so many rows at a time, in few compiled programs."""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from edlm_jax.decoding import Decoder, Engine, Generation, RequestSettings, Sampling
from edlm_jax.decoding.ends import read_ends
from edlm_jax.decoding.prompts import bucket, row_seeds
from edlm_jax.decoding.requests import MOST_ENDS
from edlm_jax.decoding.stopping import Reader, check_stop
from edlm_jax.errors import InputError

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Decoded:
    """What one prompt became, and the forwards that its row took."""

    tokens: list[int]
    text: str | None  # where the decoder got a `detokenize`
    denoise_forwards: int
    commit_forwards: int
    accepted_at: list[int]  # for each token, the row's forward that accepted it


def decode_batches(
    decoder: Decoder, prompts: Prompts, *, on_batch: Callable[[int], None] = lambda count: None, **how
) -> list[Decoded]:
    """Of `decode_each`, in the prompts' order; `on_batch` hears now and then how many prompts are finished."""
    decoded: dict[int, Decoded] = {}
    for batch in decode_each(decoder, prompts, **how):
        decoded |= batch
        on_batch(len(decoded))
    return [decoded[i] for i in range(len(prompts))]


def decode_each(
    decoder: Decoder, prompts: Prompts, *, batch_size: int, seeds: Sequence[int] | None = None, **decoding
) -> Iterator[dict[int, Decoded]]:
    """Yields results by their prompts' indices, as they come; InputError names one that cannot be decoded by its index.

    More prompts than rows go through the engine, where a row that ends makes room for the next prompt; fewer are one
    batch, which compiles less. The results are the same.

    Args:
      batch_size: rows decoded at a time; a batch is filled up with rows that count for nothing.
      seeds: one a prompt (default: those of seed 0), so that a prompt draws the same noise in any batch.
      decoding: the decoder's other arguments: mode, limit, ends ...
    """
    for reason in decoder.refuse(prompts, **decoding).values():  # before the first row, and by its own index
        raise InputError(reason)
    seeds = row_seeds(0, len(prompts)).tolist() if seeds is None else seeds
    sampling, ends = decoding.get("sampling", Sampling()), read_ends(decoding.get("ends"))
    # The engine's rows lie on one device, end at few tokens, and are as sure as the checkpoint's own code says.
    suits_the_engine = decoder.weights.groups == 1 and len(ends) <= MOST_ENDS and sampling.confidence is None
    if len(prompts) > batch_size and suits_the_engine:
        yield from _in_slots(decoder, prompts, seeds, batch_size, **decoding | dict(sampling=sampling, ends=ends))
        return
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # alike lengths together: little padding
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        filled = list(itertools.islice(itertools.cycle(chosen), batch_size))
        result = decoder([prompts[i] for i in filled], seed=[seeds[i] for i in filled], **decoding)
        yield dict(zip(chosen, _rows(result), strict=False))


def decode_to_longest(decoder: Decoder, prompts: Prompts, limits: Sequence[int], **decoding) -> list[Decoded]:
    """`decode_batches` with the longest limit for every prompt that leaves room for it, and its own for the others.

    A higher limit changes no earlier token, and each one would be compiled again.
    """
    longest, most, decoded = max(limits, default=1), decoder.spec.max_length, {}
    asked = zip(prompts, limits, strict=True)
    chosen = [longest if len(prompt) + longest <= most else limit for prompt, limit in asked]
    for limit in sorted(set(chosen), reverse=True):
        members = [index for index in range(len(prompts)) if chosen[index] == limit]
        rows = decode_batches(decoder, [prompts[i] for i in members], limit=limit, **decoding)
        decoded |= zip(members, rows, strict=True)
    return [decoded[index] for index in range(len(prompts))]


def _in_slots(decoder, prompts: Prompts, seeds, slots, *, limit, sampling, ends, mode=None, stop=(), detokenize=None):
    """The results, about as many at a time as there are slots."""
    stop = check_stop(stop, detokenize)
    columns = min(bucket(max(map(len, prompts)) + limit, 64), decoder.spec.max_length)
    engine = Engine(decoder, mode, slots=slots, columns=columns, least=slots)
    ids = [int(token) for token in ends if token >= 0]
    how = dict(ends=ids, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p)
    waiting, growing, ready = deque(range(len(prompts))), {}, {}
    while waiting or engine.live:
        while waiting and engine.free:
            index = waiting.popleft()
            slot = engine.insert(prompts[index], RequestSettings(limit, seeds[index], **how))
            growing[slot] = index, Reader(stop, detokenize, [prompts[index]]) if detokenize else None, [], []
        for event in engine.step():
            index, reader, tokens, accepted_at = growing[event.slot]
            tokens += event.tokens
            accepted_at += event.accepted_at
            row = Generation([tokens], [accepted_at], [event.denoise_forwards], [event.commit_forwards])
            if reader and (stop or event.finished):
                row = reader.read(row)
            stopped = bool(stop) and bool(reader.stopped_B[0])
            if stopped and not event.finished:
                engine.release(event.slot)
            if stopped or event.finished:
                (ready[index],) = _rows(row)
        if len(ready) >= slots or not (waiting or engine.live):
            yield ready
            ready = {}


def _rows(result: Generation) -> list[Decoded]:
    counts = (result.row_denoise_forwards, result.row_commit_forwards, result.accepted_at)
    texts = result.texts or [None] * len(result.tokens)
    return [Decoded(*row) for row in zip(result.tokens, texts, *counts, strict=True)]
