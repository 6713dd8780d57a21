"""An engine for requests that come and go: a slot a row, each with settings of its own; a slot that ends is free again.

    engine = Engine(model, slots=32, columns=512)
    slot = engine.insert(prompt, RequestSettings(limit=64, ends=(2,), seed=7))
    while engine.live:
        for event in engine.step():
            print(event.slot, event.tokens, event.finished)

The engine's state is the mode's own (lane.py), told each row's limit, ends, threshold and sampling apart. A row's
tokens are those that a `Decoder` gives for it alone. With several modes a row is decoded by the one that gives most
tokens a second with as many rows as are live when its turn comes (load.py): one that has begun goes on as it began, for
what its cache holds is what its mode put there.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edlm_jax.decoding.decoder import Decoder
from edlm_jax.decoding.lane import Lane
from edlm_jax.decoding.load import Pace, Yield, choose
from edlm_jax.decoding.modes import Mode
from edlm_jax.decoding.requests import RequestSettings, refuse
from edlm_jax.errors import InputError
from edlm_jax.models import Transformer

_WAITS, _MOST_WAIT = 64, 4  # columns of prefill in a step for each prompt that waits, up to so many of them


@dataclass(frozen=True)
class Event:
    """What a step brought to one row: tokens that nothing takes back, or its end, or both."""

    slot: int
    tokens: list[int]  # new since the row's last event
    accepted_at: list[int]  # for each of them, the row's denoising forward (from 1) that accepted it
    finished: str | None  # None: it goes on; "end": its last token is one of its ends; "limit": it has all its tokens
    denoise_forwards: int  # of the row so far; the prefill is the first, as in `Generation`
    commit_forwards: int
    logprobs: list[list[tuple[int, float]]]  # if asked for, of each new token: (id, log-probability), then of the best


@dataclass
class _Live:
    """What is known of a slot in use."""

    prompt: Sequence[int]
    settings: RequestSettings
    lane: Lane | None = None  # None: it waits
    prefill: Iterator[int] = iter(())  # what is left of it
    told: int = 0  # tokens


class Engine:
    """A model decoding up to `slots` requests at once, each begun and ended apart from the others.

    One thread calls it; nothing here waits or locks. A row's tokens, and its counts of forwards, are those of
    `Decoder([prompt], mode, limit=..., seed=[...], ...)`, whatever the rows beside it (float32 on CPU: to the bit).

    Args:
      model: a model or its `Decoder`.
      mode: how rows are decoded, with its options; default: the model's own, `default_mode`. Of several each row
        gets the one that suits the load.
      slots: the most rows at once.
      columns: a prompt and its new tokens fit into so many together.
      least: rows that are computed at the least, whoever is there: with `slots` nothing is compiled for fewer.

    Raises:
      InputError: what a mode cannot do with this model.
    """

    def __init__(
        self,
        model: Transformer | Decoder,
        mode: Mode | Sequence[Mode] | None = None,
        *,
        slots: int = 32,
        columns: int = 512,
        least: int = 1,
    ):
        decoder = model if isinstance(model, Decoder) else Decoder.of(model)
        if slots < 1 or columns < 2:
            raise InputError(f"slots must be positive and columns at least 2, not {slots} and {columns}")
        if decoder.weights.groups > 1:
            raise InputError("the engine's rows lie on one device, or on several that share its matrices: data=1")
        modes = [mode] if mode is None or isinstance(mode, Mode) else list(mode)
        self.spec, self.slots, self.columns = decoder.spec, slots, columns
        self.paces: list[Pace] = []  # of several modes, what their forwards cost, once it is warm
        self.modes = [decoder.completed(mode) for mode in modes]
        size = dict(least=least, slots=slots, columns=columns)
        self._lanes = [Lane(decoder.weights, mode, **size) for mode in self.modes]
        self._yields = [Yield(lane.most) for lane in self._lanes]
        self._live: dict[int, _Live] = {}
        self._waiting: deque[int] = deque()  # slots whose prompts are not prefilled

    @property
    def mode(self) -> Mode:
        """The first of the modes."""
        return self.modes[0]

    @property
    def live(self) -> int:
        """Slots in use."""
        return len(self._live)

    @property
    def free(self) -> int:
        """Slots that a request can be put into."""
        return self.slots - self.live

    def warm(self) -> None:
        """Compiles all that requests may need, before the first; of several modes, measures what forwards cost."""
        if any(row.lane for row in self._live.values()):
            raise InputError("warm the engine before its first request: it rehearses in the rows' places")
        if len(self._lanes) > 1:
            self.paces = [lane.pace() for lane in self._lanes]
        else:
            for lane in self._lanes:
                lane.rehearse()

    def refuse(self, prompt: Sequence[int], settings: RequestSettings) -> str | None:
        """Why this request can never be decoded here, in one line; None where it can. Full slots are no reason."""
        modes = [self.modes[index] for index in self._able(settings)]
        if not modes:
            return f"{', '.join(map(str, self.modes))} can't be told which tokens may come; ar can"
        if settings.threshold is not None and not any(mode.has_threshold for mode in modes):
            return f"{', '.join(map(str, modes))} accepts by no threshold; leave the request's out"
        reasons = (refuse(self.spec, mode, prompt, settings, self.columns) for mode in modes)
        return next(filter(None, reasons), None)

    def insert(self, prompt: Sequence[int], settings: RequestSettings) -> int:
        """The slot of a new row. The next steps prefill it, in its turn, beside the decoding of others.

        Raises:
          InputError: what `refuse` says, or that no slot is free.
        """
        if reason := self.refuse(prompt, settings):
            raise InputError(reason)
        if not self.free:
            raise InputError(f"all {self.slots} slots are in use; wait until a step ends one, or release one")
        slot = next(slot for slot in range(self.slots) if slot not in self._live)
        self._live[slot] = _Live(prompt, settings)
        self._waiting.append(slot)
        return slot

    def step(self) -> list[Event]:
        """Prefills a little of what waits, then takes every row a turn or a few further.

        An event for each row with new tokens or an end; a row's tokens come a block at a time, or one or a few in the
        modes without blocks. The slot of a row with `finished` is free again when this returns. Without live rows: [].
        """
        self._prefill()
        return [event for index, lane in enumerate(self._lanes) if lane.live for event in self._decode(index, lane)]

    def release(self, slot: int) -> None:
        """Frees a slot at once, whatever its row has; it costs no further forward. A free slot may be released."""
        row = self._live.pop(slot, None)
        if slot in self._waiting:
            self._waiting.remove(slot)
        elif row is not None and row.lane is not None:
            row.lane.drop(slot)

    def _prefill(self) -> None:
        """As many columns as a step of those that decode has, or a piece or so for each that waits; at least a piece.

        Where many wait, slots that nothing fills cost more than a step that takes longer.
        """
        room = max(sum(lane.live * lane.width for lane in self._lanes), _WAITS * min(len(self._waiting), _MOST_WAIT))
        while self._waiting:
            slot = self._waiting[0]
            row = self._live[slot]
            if row.lane is None:
                row.lane = self._lanes[self._choose(row.settings)]
                row.prefill = row.lane.prefill(slot, row.lane.row(row.prompt, row.settings))
            room -= next(row.prefill)
            if slot in row.lane.rows:
                self._waiting.popleft()
            if room <= 0 and any(lane.live for lane in self._lanes):
                return

    def _able(self, settings: RequestSettings) -> list[int]:
        """The modes that may decode the request: a guided one those alone that can be told which tokens may come."""
        return [index for index, mode in enumerate(self.modes) if mode.guided or settings.guide is None]

    def _choose(self, settings: RequestSettings) -> int:
        if len(self._lanes) == 1:
            return 0
        if not self.paces:
            self.warm()  # for a guided row, too: none may live yet
        able = self._able(settings)
        return able[choose(self.live, [self.paces[i] for i in able], [self._yields[i].mean for i in able])]

    def _decode(self, index: int, lane: Lane) -> list[Event]:
        settled, events = lane.step(), []
        for at, slot in enumerate(lane.rows):
            if slot is None:
                continue
            row, columns, finished = self._live[slot], settled.columns[at], None
            new = slice(columns.start + row.told, columns.stop)
            tokens, accepted_at = settled.tokens_BX[at, new].tolist(), settled.accepted_at_BX[at, new].tolist()
            counts = int(settled.denoise_B[at]), int(settled.commit_B[at])
            row.told += len(tokens)
            if lane.done_B[at]:
                last = settled.tokens_BX[at, columns.stop - 1]
                finished = "end" if last in row.settings.ends else "limit"
                lane.drop(slot)
                del self._live[slot]
                for i, found in enumerate(self._yields):
                    if i == index:
                        found.add(row.told, sum(counts))
                    else:
                        found.add()
            if finished or tokens:
                wanted = settled.logprobs if row.settings.logprobs else None
                logprobs = wanted.at(at, new) if wanted else []
                events.append(Event(slot, tokens, accepted_at, finished, *counts, logprobs))
        return events
