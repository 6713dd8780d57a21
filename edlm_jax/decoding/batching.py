"""An engine for requests that come and go: a slot a row, each with settings of its own; a slot that ends is free again.

    engine = Engine(model, slots=32, columns=512)
    slot = engine.insert(prompt, RequestSettings(limit=64, ends=(2,), seed=7))
    while engine.live:
        for event in engine.step():
            print(event.slot, event.tokens, event.finished)

The engine's state is the mode's own (lane.py), told each row's limit, ends, threshold and sampling apart. With several
modes a row is decoded by the one that gives most tokens a second with as many rows as are live when its turn comes
(load.py): one that has begun goes on as it began, for what its cache holds is what its mode put there.
"""

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

from edlm_jax.decoding.decoder import Decoder
from edlm_jax.decoding.ends import read_ends
from edlm_jax.decoding.engine import beside, thread
from edlm_jax.decoding.generation import Settled
from edlm_jax.decoding.lane import Lane
from edlm_jax.decoding.load import Pace, Yields, choose
from edlm_jax.decoding.modes import Mode
from edlm_jax.decoding.pages import Pool
from edlm_jax.decoding.requests import RequestSettings, check_request
from edlm_jax.errors import InputError
from edlm_jax.models import Transformer
from edlm_jax.models.cache import DecodingWeights


@dataclass(frozen=True)
class CacheUse:
    """Columns of the rows' caches, where these lie in pages."""

    columns: int  # that there are
    used: int  # of rows
    shared: int  # of prompts, so far, that earlier ones had left


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


class _Side:
    """A lane for each mode, whose programs run in order, beside those of other sides; their caches are in one pool."""

    def __init__(self, weights: DecodingWeights, modes: Sequence[Mode], cache_columns: int | None, **size: int):
        self.pool = Pool(weights, modes, cache_columns) if weights.backend.pages else None
        self.lanes = [Lane(weights, mode, pool=self.pool, **size) for mode in modes]
        self.running: Future | None = None  # a step
        self.left: list[_Live] = []  # rows that were released, to be forgotten when no step runs

    @property
    def taken(self) -> int:
        """Rows, and those that wait."""
        return sum(lane.taken for lane in self.lanes)

    def forget(self) -> None:
        """Rows that were released, unless a step runs."""
        while self.left and self.running is None:
            row = self.left.pop()
            row.lane.drop(row)

    def go_on(self) -> list[tuple[int, Lane, Settled]]:
        """(mode, lane, what its step has brought) of the lanes with rows."""
        steps = [(index, lane, lane.go_on()) for index, lane in enumerate(self.lanes) if lane.taken]
        return [(index, lane, settled) for index, lane, settled in steps if settled is not None]


@dataclass(eq=False)
class _Live:
    """What is known of a slot in use."""

    slot: int
    prompt: Sequence[int]
    settings: RequestSettings
    side: _Side | None = None  # None: one of the next steps finds it one, and a lane
    lane: Any = None
    told: int = 0  # tokens


class Engine:
    """A model decoding up to `slots` requests at once, each begun and ended apart from the others.

    One thread calls it. On CPU its rows are in a program a core, each in a thread of its own, where batches are
    (backend.py), and a step waits for one of them. A row's tokens, and its counts of forwards, are those of
    `Decoder([prompt], mode, limit=..., seed=[...], ...)`, whatever the rows beside it (float32 on CPU: to the bit).

    Args:
      model: a model or its `Decoder`.
      mode: how rows are decoded, with its options; default: the model's own, `default_mode`. Of several each row
        gets the one that suits the load.
      slots: the most rows at once.
      columns: a prompt and its new tokens fit into so many together.
      least: rows that are computed at the least, whoever is there: with `slots` nothing is compiled for fewer.
      cache_columns: of the caches of all rows together, where they lie in pages (float32 on CPU); default: enough for
        all slots, however long their rows are, and a few more. With fewer a row that lacks them waits in its slot.

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
        cache_columns: int | None = None,
    ):
        decoder = model if isinstance(model, Decoder) else Decoder.of(model)
        if slots < 1 or columns < 2:
            raise InputError(f"slots must be positive and columns at least 2, not {slots} and {columns}")
        weights = decoder.weights
        if weights.groups > 1:
            raise InputError("the engine's rows lie on one device, or on several that share its matrices: data=1")
        if cache_columns is not None and not weights.backend.pages:
            raise InputError("cache_columns are for caches in pages: float32 on CPU, with the kernels; leave them out")
        modes = [mode] if mode is None or isinstance(mode, Mode) else list(mode)
        self.spec, self.slots, self.columns = decoder.spec, slots, columns
        self.paces: list[Pace] = []  # of several modes, what their forwards cost, once it is warm
        self.modes = [decoder.completed(mode) for mode in modes]
        sides = weights.backend.parts(slots, weights.nbytes)  # of the rows, each with a program, beside one another
        size = dict(least=-(-least // sides), slots=slots // sides, columns=columns)
        share = None if cache_columns is None else cache_columns // sides
        self._sides = [_Side(weights, self.modes, share, **size) for _ in range(sides)]
        self._yields = Yields([lane.most for lane in self._sides[0].lanes])
        self._live: dict[int, _Live] = {}

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

    @property
    def cache(self) -> CacheUse | None:
        """What rows have of their caches; None where each has a stretch of its own."""
        pools = [side.pool for side in self._sides if side.pool]
        total = lambda name: sum(pool.page * getattr(pool, name) for pool in pools)  # noqa: E731
        return CacheUse(total("pages"), total("used"), total("shared")) if pools else None

    def warm(self) -> None:
        """Compiles all that requests may need, before the first; of several modes, measures what forwards cost."""
        if any(side.taken for side in self._sides):
            raise InputError("warm the engine before its first request: it rehearses in the rows' places")
        for lane in self._sides[0].lanes:
            lane.rehearse()  # all sides have the same programs
        if len(self.modes) > 1:
            of_modes = zip(*(side.lanes for side in self._sides), strict=True)
            self.paces = [beside([lane.pace for lane in lanes])[0] for lanes in of_modes]

    def refuse(self, prompt: Sequence[int], settings: RequestSettings) -> str | None:
        """Why this request can never be decoded here, in one line; None where it can. Full slots are no reason."""
        modes = [self.modes[index] for index in self._able(settings)]
        if not modes:
            return f"{', '.join(map(str, self.modes))} can't be told which tokens may come; ar can"
        if settings.threshold is not None and not any(mode.has_threshold for mode in modes):
            return f"{', '.join(map(str, modes))} accepts by no threshold; leave the request's out"
        try:
            for mode in modes:
                check_request(self.spec, mode, prompt, settings, self.columns)
        except InputError as error:
            return str(error)
        return None

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
        self._live[slot] = _Live(slot, list(prompt), settings)  # read later, when the caller may have changed it
        return slot

    def step(self) -> list[Event]:
        """Prefills a little of what waits, then takes every row of a side a turn or a few further.

        An event for each row with new tokens or an end; a row's tokens come a block at a time, or one or a few in the
        modes without blocks. The slot of a row with `finished` is free again when this returns. Without live rows: [].
        """
        for index, side in enumerate(self._sides):
            if side.running is None:
                self._fill(side)
                if side.taken:
                    side.running = self._start(index, side)
        running = {side.running: side for side in self._sides if side.running}
        done = wait(running, return_when=FIRST_COMPLETED).done
        return [event for step in done for event in self._finish(running[step], step)]

    def release(self, slot: int) -> None:
        """Frees a slot at once, whatever its row has; it costs no further forward. A free slot may be released."""
        row = self._live.pop(slot, None)
        if row is not None and row.side is not None:
            row.side.left.append(row)
            row.side.forget()

    def _start(self, index: int, side: _Side) -> Future:
        """A step of it; alone it runs here, where jax's context managers of the caller hold."""
        if len(self._sides) > 1:
            return thread(index).submit(side.go_on)
        step: Future = Future()
        step.set_result(side.go_on())
        return step

    def _fill(self, side: _Side) -> None:
        """Gives it its share of the rows, of those that have no side yet."""
        for row in self._live.values():
            if row.side is None and side.taken * len(self._sides) < self.live:
                row.side, row.lane = side, side.lanes[self._choose(row.settings)]
                row.lane.put(row, row.prompt, row.settings)

    def _finish(self, side: _Side, step: Future) -> list[Event]:
        """What its step has brought; of one that failed it raises why, and the next begins anew."""
        side.running = None
        side.forget()
        return [event for of_lane in step.result() for event in self._told(*of_lane)]

    def _able(self, settings: RequestSettings) -> list[int]:
        """The modes that may decode the request: a guided one those alone that can be told which tokens may come."""
        return [index for index, mode in enumerate(self.modes) if mode.guided or settings.guide is None]

    def _choose(self, settings: RequestSettings) -> int:
        if len(self.modes) == 1:
            return 0
        if not self.paces:
            self.warm()  # for a guided row, too: none may live yet
        rows = -(-self.live // len(self._sides))
        return choose(self._able(settings), rows, self.paces, self._yields.means)

    def _told(self, index: int, lane: Lane, settled: Settled) -> list[Event]:
        """What a step of a lane has brought, which decodes by the mode of this index."""
        events = []
        for at, row in enumerate(lane.rows):
            if row is None:
                continue
            columns, finished = settled.columns[at], None
            new = slice(columns.start + row.told, columns.stop)
            tokens, accepted_at = settled.tokens_BX[at, new].tolist(), settled.accepted_at_BX[at, new].tolist()
            counts = int(settled.denoise_B[at]), int(settled.commit_B[at])
            row.told += len(tokens)
            if lane.done_B[at]:
                last = settled.tokens_BX[at, columns.stop - 1]
                finished = "end" if last in read_ends(row.settings.ends) else "limit"
                lane.drop(row)
                del self._live[row.slot]
                self._yields.add(index, row.told, sum(counts))
            if finished or tokens:
                wanted = settled.logprobs if row.settings.logprobs else None
                logprobs = wanted.at(at, new) if wanted else []
                events.append(Event(row.slot, tokens, accepted_at, finished, *counts, logprobs))
        return events
