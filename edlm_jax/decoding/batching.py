"""An engine for requests that come and go: a slot a row, each with settings of its own; a slot that ends is free again.

    engine = Engine(model, slots=32, columns=512)
    slot = engine.insert(prompt, RequestSettings(limit=64, ends=(2,), seed=7))
    while engine.live:
        for event in engine.step():
            print(event.slot, event.tokens, event.finished)

The engine's state is the mode's own, with a row a slot: what begins and turns rows is the mode's program (engine.py),
told each row's limit, ends, threshold and sampling apart. A row's tokens are those that a `Decoder` gives for it alone.
A prompt is prefilled whole when it is inserted, and every length of prompt compiles for itself.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from edlm_jax.decoding.acceptance import Threshold
from edlm_jax.decoding.compiled import compiled
from edlm_jax.decoding.decoder import Decoder
from edlm_jax.decoding.ends import read_ends
from edlm_jax.decoding.engine import Run, advance, begin
from edlm_jax.decoding.modes import Call, Mode
from edlm_jax.decoding.prompts import refuse_prompt
from edlm_jax.decoding.sampling import RowDraw, RowSampling, Sampling
from edlm_jax.errors import InputError
from edlm_jax.models import Transformer
from edlm_jax.parallel.mesh import on_mesh

_ENDS = 8  # ids that end a row: the room for them is compiled in


@dataclass(frozen=True)
class RequestSettings:
    """How one request is decoded, apart from all others."""

    limit: int  # the most new tokens
    seed: int = 0  # below 2**32, the row's own: what `Decoder` is given as `seed=[seed]`
    ends: Sequence[int] = ()  # at most 8 ids; the row ends at any of them, which is its last token
    temperature: float = 0.0  # 0: greedy
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    threshold: float | None = None  # None: the mode's own; of modes that have a threshold

    @property
    def sampling(self) -> Sampling:
        """The part that says how tokens are drawn."""
        return Sampling(self.temperature, self.top_k, self.top_p)


@dataclass(frozen=True)
class Event:
    """What a step brought to one row: tokens that nothing takes back, or its end, or both."""

    slot: int
    tokens: list[int]  # new since the row's last event
    accepted_at: list[int]  # for each of them, the row's denoising forward (from 1) that accepted it
    finished: str | None  # None: it goes on; "end": its last token is one of its ends; "limit": it has all its tokens
    denoise_forwards: int  # of the row so far; the prefill is the first, as in `Generation`
    commit_forwards: int


@dataclass
class _Row:
    """What the host knows of a slot in use."""

    settings: RequestSettings
    seen: int = 0  # tokens that were told


class Engine:
    """A model decoding up to `slots` requests at once, each begun and ended apart from the others.

    One thread calls it; nothing here waits or locks. A row's tokens, and its counts of forwards, are those of
    `Decoder([prompt], mode, limit=..., seed=[...], ...)`, whatever the rows beside it (float32 on CPU: to the bit).

    Args:
      model: a model or its `Decoder`.
      mode: how all rows are decoded, with its options; default: diffusion, or AR where the model was never converted.
      slots: the most rows at once.
      columns: a prompt and its new tokens fit into so many together.

    Raises:
      InputError: what the mode cannot do with this model.
    """

    def __init__(self, model: Transformer | Decoder, mode: Mode | None = None, *, slots: int = 32, columns: int = 512):
        decoder = model if isinstance(model, Decoder) else Decoder.of(model)
        if slots < 1 or columns < 2:
            raise InputError(f"slots and columns must be positive, not {slots} and {columns}")
        self.spec, self.weights, self.slots, self.columns = decoder.spec, decoder.weights, slots, columns
        self.mode = decoder.completed(mode)
        self._rows: dict[int, _Row] = {}
        self._requests: Any = None  # of all slots, on the host
        self._state: Any = None  # of all slots, on the device
        self._settings: Any = None

    @property
    def live(self) -> int:
        """Slots in use."""
        return len(self._rows)

    @property
    def free(self) -> int:
        """Slots that a request can be put into."""
        return self.slots - self.live

    def refuse(self, prompt: Sequence[int], settings: RequestSettings) -> str | None:
        """Why this request can never be decoded here, in one line; None where it can. Full slots are no reason."""
        try:
            self._check(settings)
        except InputError as error:
            return str(error)
        if reason := refuse_prompt(self.spec, prompt, settings.limit, self.mode.banned_id):
            return f"the prompt {reason}"
        if len(prompt) + settings.limit > self.columns:
            asked = f"{len(prompt)} tokens and {settings.limit} new ones"
            return f"the prompt is too long: {asked} exceed the {self.columns} of a slot; shorten it or ask for fewer"
        return None

    def insert(self, prompt: Sequence[int], settings: RequestSettings) -> int:
        """The slot of a new row, which the next `step` begins with.

        Raises:
          InputError: what `refuse` says, or that no slot is free.
        """
        if reason := self.refuse(prompt, settings):
            raise InputError(reason)
        if not self.free:
            raise InputError(f"all {self.slots} slots are in use; wait until a step ends one, or release one")
        slot = next(slot for slot in range(self.slots) if slot not in self._rows)
        run = self._run(list(prompt), settings)
        self._settings = run.settings.spanning(0, self._room(run.settings))
        with on_mesh(self.weights.mesh):
            row = begin(self.weights, run.request, run.settings)
            if self._state is None:
                empty = lambda x: np.zeros((self.slots, *np.shape(x)[1:]), x.dtype)  # noqa: E731
                self._requests = jax.tree.map(empty, replace(run.request, prompts_BP=run.request.prompts_BP[:, :0]))
                self._state = jax.tree.map(empty, row)
            self._state = _put(self._state, row, np.int32(slot))
        for all_rows, value in zip(jax.tree.leaves(self._requests), jax.tree.leaves(run.request), strict=True):
            all_rows[slot] = value[0, : all_rows.shape[1]] if all_rows.ndim == 2 else value[0]
        self._rows[slot] = _Row(settings)
        return slot

    def step(self) -> list[Event]:
        """Takes every row a turn or a few further; an event for each row with new tokens or an end.

        The slot of a row with `finished` is free again when this returns. Without live rows: [].
        """
        if not self._rows:
            return []
        begun, done_B = self._state, np.ones(self.slots, bool)
        slots = list(self._rows)
        done_B[slots] = np.asarray(begun.done_B)[slots]
        with on_mesh(self.weights.mesh):
            self._state = advance(self.weights, self._requests, self._settings, replace(begun, done_B=done_B))
        result, done_B = self._requests.collect(self._state), np.asarray(self._state.done_B)
        events = []
        for slot in slots:
            row, tokens = self._rows[slot], result.tokens[slot]
            finished = None
            if done_B[slot]:
                finished = "end" if tokens and tokens[-1] in row.settings.ends else "limit"
                del self._rows[slot]
            if finished or len(tokens) > row.seen:
                new, at = tokens[row.seen :], result.accepted_at[slot][row.seen :]
                counts = result.row_denoise_forwards[slot], result.row_commit_forwards[slot]
                events.append(Event(slot, new, at, finished, *counts))
                row.seen = len(tokens)
        return events

    def release(self, slot: int) -> None:
        """Frees a slot at once, whatever its row has; it costs no further forward. A free slot may be released."""
        self._rows.pop(slot, None)

    def _check(self, settings: RequestSettings) -> None:
        if settings.limit < 1:
            raise InputError(f"the limit of new tokens must be positive, not {settings.limit}")
        if not 0 <= settings.seed < 2**32:
            raise InputError(f"a seed must lie in [0, 2**32), not {settings.seed}")
        if len(read_ends(settings.ends)) > _ENDS:
            raise InputError(f"a row may end at {_ENDS} tokens, not {len(settings.ends)}")
        with warnings.catch_warnings(action="ignore"):
            settings.sampling.check()
            self.mode.check(self.spec, settings.sampling)
        if settings.threshold is not None:
            if not hasattr(self.mode, "threshold") or getattr(self.mode, "rule", None):
                raise InputError(f"{self.mode} accepts by no threshold; leave the request's out")
            Threshold(settings.threshold).check()

    def _run(self, prompt: list[int], settings: RequestSettings) -> Run:
        """The row's own decoding, in the columns of the engine."""
        mode, ends_E = self.mode, read_ends(settings.ends)
        if settings.threshold is not None:
            mode = replace(mode, threshold=settings.threshold)
        call = Call(self.spec, settings.limit, settings.sampling, ends_E, np.array([settings.seed], np.uint32))
        run = mode.start(self.weights, [prompt], call)
        conversion = self.spec.conversion
        if not self.mode.greedy:
            draw = RowDraw(drawn_confidence=conversion is not None and conversion.confidence == "drawn")
            run = replace(run, settings=replace(run.settings, draw=draw))
        return by_row(run, settings.sampling, self._room(run.settings))

    def _room(self, settings) -> int:
        unit = settings.unit
        return (-(-self.columns // unit) + 2) * unit


def by_row(run: Run, sampling: Sampling, columns: int) -> Run:
    """A run of one row in so many columns, with less padding, and with all that a row may have for itself by row."""
    request, settings = run.request, run.settings
    P, unit = request.prompts_BP.shape[1], settings.unit
    cut = min(int(request.pad_B[0]) // unit * unit, P - unit)
    number = lambda value, kind: np.full((1, 1, 1), value, kind)  # noqa: E731
    numbers = number(sampling.temperature, np.float32), number(sampling.top_k, np.int32)
    own = {name: getattr(request, name) - cut for name in ("pad_B", "first_B") if hasattr(request, name)}
    for name in ("rule", "threshold"):
        if hasattr(request, name):
            own[name] = jax.tree.map(lambda x: np.full((1, 1), x, np.float32), getattr(request, name))
    request = replace(
        request,
        prompts_BP=request.prompts_BP[:, cut:],
        ends_E=request.ends_E[None, None],
        limit=np.full((1, 1), request.limit, np.int32),
        temperature=RowSampling(*numbers, number(sampling.top_p, np.float32)),
        **own,
    )
    return Run(run.weights, request, settings.spanning(P - cut, columns))


@compiled(donate_argnames="rows")
def _put(rows, row, slot):
    """All rows with this one in its slot."""
    return jax.tree.map(lambda all_rows, x: jax.lax.dynamic_update_index_in_dim(all_rows, x[0], slot, 0), rows, row)
