"""A model made ready for decoding, and one call of it."""

import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import numpy as np
from flax import nnx

from edlm_jax.decoding.ends import read_ends
from edlm_jax.decoding.engine import Run
from edlm_jax.decoding.generation import Generation
from edlm_jax.decoding.modes import MODES, Mode, default_mode
from edlm_jax.decoding.modes.mode import Call
from edlm_jax.decoding.prompts import bucket, refuse_prompt, row_seeds
from edlm_jax.decoding.sampling import Sampling
from edlm_jax.decoding.stopping import Reader, check_stop
from edlm_jax.errors import InputError, check_range
from edlm_jax.models import ModelSpec, Transformer
from edlm_jax.models.cache import DecodingWeights
from edlm_jax.models.lora import Lora
from edlm_jax.parallel.devices import platform
from edlm_jax.pretrained.text import Read, Text

Prompts = Sequence[Sequence[int]]
_GREEDY = Sampling()
_DECODERS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # model: (its parameters, its decoder)


def check_settings(spec: ModelSpec, mode: Mode | None = None, *, stop=(), detokenize=None, **settings) -> None:
    """Raises what a `Decoder` of this spec would in a call with these settings: before its weights are read."""
    with warnings.catch_warnings(action="ignore"):  # the decoding itself says them
        _read_call(spec, False, 0, mode, **settings)
    check_stop(stop, detokenize)


def refuse_prompts(
    spec: ModelSpec, prompts: Prompts, mode: Mode | None = None, *, limit: int, names: Sequence[str] | None = None, **_
) -> dict[int, str]:
    """index -> reason, one line, of the prompts that a call with these settings refuses; `names`: what to call them."""
    mask_id = (mode or default_mode(spec)).completed(spec).banned_id
    names = names or [f"prompt {index}" for index in range(len(prompts))]
    reasons = [refuse_prompt(spec, prompt, limit, mask_id) for prompt in prompts]
    return {index: f"{names[index]} {reason}" for index, reason in enumerate(reasons) if reason}


class Decoder:
    """A model's weights laid out once, where the model lies: on one device, or on a mesh.

    It does not follow later changes of them. With `take` the model is emptied on the way, for a Decoder that replaces
    it: so many weights are never held twice.
    """

    def __init__(self, model: Transformer, *, take: bool = False):
        self.spec = model.spec
        self.weights = DecodingWeights.of(model, take=take)

    @classmethod
    def planned(cls, spec: ModelSpec, dtype: str, lora: Lora | None = None, *, alone: bool = True) -> "Decoder":
        """Of a model that nobody has read yet: it decodes nothing, but an `Engine` of it refuses what it always would.

        `lora` are the adapters of noisy columns beside it; `alone`: it will lie on one device.
        """
        decoder = cls.__new__(cls)
        decoder.spec, decoder.weights = spec, DecodingWeights.planned(spec, dtype, lora, alone=alone)
        return decoder

    @classmethod
    def of(cls, model: Transformer) -> "Decoder":
        """The model's decoder of the last time, as long as it has the same parameters; it goes with the model."""
        parameters = jax.tree.leaves(nnx.state(model))
        as_of, decoder = _DECODERS.get(model, ((), None))
        same = len(as_of) == len(parameters) and all(x() is y for x, y in zip(as_of, parameters, strict=True))
        if decoder is None or not same or (decoder.spec, decoder.weights.dtype) != (model.spec, model.dtype):
            _DECODERS.pop(model, None)  # before another one is made
            decoder = cls(model)
            _DECODERS[model] = [weakref.ref(x) for x in parameters], decoder
        return decoder

    def refuse(self, prompts: Prompts, mode: Mode | None = None, **settings) -> dict[int, str]:
        """index -> reason of the prompts that a call with these settings would refuse."""
        return refuse_prompts(self.spec, prompts, mode, **settings)

    def completed(self, mode: Mode | None) -> Mode:
        """The mode as this model decodes by it (default: its own); InputError where it cannot."""
        return self._call(1, mode, limit=1)[0]

    def _call(self, count: int, mode: Mode | None, **settings) -> tuple[Mode, Call]:
        return _read_call(self.spec, self.weights.gated, count, mode, **settings)

    def columns(self, mode: Mode) -> int:
        """Of a row in the widest forward of a turn."""
        mode, call = self._call(1, mode, limit=1)
        run = mode.start(self.weights, [[0]], call)
        return run.settings.program(run.weights, run.request).width

    def __call__(
        self,
        prompts: Prompts,
        mode: Mode | None = None,
        *,
        limit: int,
        sampling: Sampling = _GREEDY,
        seed: int | Sequence[int] = 0,
        ends: int | Sequence[int] | None = None,
        stop: str | Sequence[str] = (),
        detokenize: Read | Text | None = None,
        on_block: Callable[[list[list[int]]], None] | None = None,
    ) -> Generation:
        """Decodes a batch of prompts of any lengths; `generate` explains more.

        Args:
          mode: default: the model's own, `default_mode`.
          limit: the most new tokens of a row.
          seed: one for all rows, or one a row.
          ends: ids of tokens; a row ends at any of them that has no mask before it.
          stop, detokenize: a row also ends before the first of these strings in its text, which `detokenize` makes of
            its tokens (a tokenizer's decode, or a `Text`, which also finds strings with special tokens that it does not
            show); a token that holds the string's first character is left out. With `detokenize` the result has texts
            as they read behind their prompts, cut to the character.
          on_block: called with every row's settled tokens whenever a block has finished, or every few tokens in the
            modes without blocks, for a person who watches; tokens that may begin a stop string wait.
        """
        count = len(prompts)
        mode, call = self._call(count, mode, limit=limit, sampling=sampling, seed=seed, ends=ends)
        stop = check_stop(stop, detokenize)
        for reason in self.refuse(prompts, mode, limit=limit).values():
            raise InputError(reason)
        if not count:
            return Generation([], [], [], [])
        rows = prompts
        if spare := self._rows(count) - count:
            limit_B, seeds_B = (np.pad(x, (0, spare)) for x in (call.limit_B, call.seeds_B))
            rows, call = [*prompts, *[[0]] * spare], replace(call, limit_B=limit_B, seeds_B=seeds_B)
        run = mode.start(self.weights, rows, call)
        reader = Reader(stop, detokenize, prompts) if detokenize else None
        if on_block or stop:
            return _in_pieces(run, count, reader, on_block)
        result = run.whole().first(count)
        return reader.read(result) if reader else result

    def _rows(self, count: int) -> int:
        """Rows that are computed for so many prompts: few numbers, each of which is a program."""
        # Devices that had no row would do all rows, as one device does. On CPU a row takes time even where it is done,
        # at the head and in all that is no product: 8 rows of the quickstart took 1.2 times as long as their first 5.
        groups = self.weights.groups
        return -(-count // groups) * groups if platform() == "cpu" else bucket(count, groups)


def _read_call(
    spec: ModelSpec, gated: bool, count: int, mode: Mode | None, *, limit: int, sampling=_GREEDY, seed=0, ends=None
) -> tuple[Mode, Call]:
    """A call with so many prompts: all that can be refused without prompts. `gated`: config.json may not say it."""
    check_range("max_new_tokens", limit)
    sampling.check()
    mode = (mode or default_mode(spec)).completed(spec)
    mode.check(spec, sampling)
    if (gated or spec.conversion is not None and not spec.diffuses) and not mode.lossless:
        known = ", ".join(name for name, kind in MODES.items() if kind.lossless)
        raise InputError(f"{mode.name} verifies no drafts, but adapters act on drafts alone; use {known}")
    limit_B = np.full(count, min(limit, spec.max_length), np.int32)  # one beyond is refused with its prompt
    return mode, Call(spec, limit_B, sampling, read_ends(ends), row_seeds(seed, count))


def _in_pieces(run: Run, count: int, reader: Reader | None, on_block) -> Generation:
    """Reads and shows what each piece has added to so many rows; one that was stopped costs no further forward."""
    state, seen = run.begin(), None
    while True:
        result, done_B = run.collect(state).first(count), np.array(state.done_B)
        if reader:
            result = reader.read(result)
            done_B[:count] |= reader.stopped_B
        settled = reader.settled(result, done_B[:count]) if reader else result.tokens
        if on_block and settled != seen:
            on_block(settled)
        if done_B.all():
            return result
        seen, state = settled, run.advance(replace(state, done_B=done_B))
