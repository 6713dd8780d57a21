"""The rows that one mode decodes together, each begun and ended apart from the others: the engine's device side.

Shapes: B rows, X token columns, S cache columns. The state is the mode's own, with as many rows as the least power of
two that holds those in use, so that few rows cost little and few programs are compiled: it doubles when it is full, and
halves when it has been half empty for a while. A row that is done, or nobody's, is computed and not read.

A prompt is prefilled alone, in pieces of two lengths, and then its row is put among the others:

    P P P P P P P P P P P P        large pieces, and a small one if that holds the rest; the last piece ends with the
    |large| |large| |. s s|        prompt, and its columns that the cache has already are not computed again

Where the rows' caches lie is the store's business: in pages (pages.py) or in stretches (stretches.py), by the backend.
Either knows what earlier prompts have left: one that begins alike is prefilled from there on alone.
"""

import time
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from edlm_jax.attention import Bidirectional
from edlm_jax.decoding.compiled import compiled
from edlm_jax.decoding.generation import Settled
from edlm_jax.decoding.load import Pace
from edlm_jax.decoding.modes import Mode
from edlm_jax.decoding.pages import Pages, Pool
from edlm_jax.decoding.prompts import bucket
from edlm_jax.decoding.requests import Guide, RequestSettings, Row, make_row
from edlm_jax.decoding.stretches import Stretches, put_row, take_rows
from edlm_jax.models.cache import DecodingWeights
from edlm_jax.parallel.mesh import on_mesh

_PIECES = 64, 128  # columns of a prompt at a time; on CPU those that are not new cost little
_WAITS, _MOST_WAIT = 384, 2  # columns of prefill in a step for each prompt that waits, up to so many of them
_PATIENCE = 16  # steps with half of the rows unused before there are half as many
_MOST_TURNS = 8
_SHORT, _LONG = 5e-3, 15e-3  # seconds of a step that is worth its calls, and of one that keeps nobody waiting
_ENDED = 8  # a step ends when more than one row of so many has ended


class Lane:
    """Rows of one completed mode: from `least` to `slots` of them, each of `columns` for prompt and new tokens.

    Other lanes may have the same pool of pages, if no two of them run at the same time; default: one of its own.
    """

    def __init__(
        self, weights: DecodingWeights, mode: Mode, *, least: int, slots: int, columns: int, pool: Pool | None = None
    ):
        self.weights, self.mode, self.least, self.slots, self.turns = weights, mode, least, slots, 1
        self.room = columns
        room = columns + 4 * (mode.block_length or 1)
        probe = make_row(weights, mode, [0], RequestSettings(1), least=1, columns=room)
        C = self.unit = mode.unit
        self.pieces = [-(-length // C) * C for length in _PIECES]
        pattern = mode.prompt_pattern
        self.whole = isinstance(pattern, Bidirectional)  # all of a prompt sees all of it: it is prefilled in one piece
        # A prompt is padded to a small piece, or to its last block; the last new block may go beyond the limit.
        self.settings = replace(probe.settings, room=-(-columns // C) * C + self.pieces[0] + C)
        program = self.settings.program(weights, probe.request)
        self.X, self.width = program.X, program.width
        self.most = min(self.width, mode.block_length or self.width)  # tokens of a row's forward
        self.rows: list[Any] = []  # whose each row is, by slots or what stands for them
        self.done_B = np.zeros(0, bool)
        self.requests: Any = None  # of all rows, on the host
        self.state: Any = None  # (the same, the mode's state without its cache), on the device
        self._guides: dict[Hashable, Guide] = {}
        self._waiting: deque[tuple[Hashable, Iterator[int]]] = deque()  # slots, and what is left of their prefills
        self._spare_steps = 0
        if weights.backend.pages:
            size = dict(rows=slots, columns=(program.S, columns), beyond=self.width + C, unit=C)
            size |= dict(pattern=None if self.whole else pattern)
            self.store: Pages | Stretches = Pages(pool or Pool(weights, [mode]), **size)
        else:
            self.store = Stretches(weights, columns=program.S, unit=C, least=self.pieces[0])

    @property
    def live(self) -> int:
        """Rows in use."""
        return sum(slot is not None for slot in self.rows)

    @property
    def taken(self) -> int:
        """Rows in use, and those that wait."""
        return self.live + len(self._waiting)

    def put(self, slot: Hashable, prompt: Sequence[int], settings: RequestSettings) -> None:
        """A request for this slot, prefilled in its turn."""
        self._waiting.append((slot, self.prefill(slot, prompt, settings)))

    def go_on(self) -> Settled | None:
        """Prefills a little of what waits, then takes all rows a turn or a few further, if there are any."""
        # Where many wait, slots that nothing fills cost more than a step that takes longer.
        room = max(self.live * self.width, _WAITS * min(len(self._waiting), _MOST_WAIT))
        while self._waiting and (room > 0 or not self.live):
            slot, pieces = self._waiting[0]
            new = next(pieces)
            if not new:
                break  # it waits for pages of rows that have not ended
            room -= new
            if slot in self.rows:
                self._waiting.popleft()
        return self.step() if self.live else None

    def prefill(self, slot: Hashable, prompt: Sequence[int], settings: RequestSettings) -> Iterator[int]:
        """Prefills a row and puts it among the others, a piece a turn: yields the columns of each, 0 as it waits."""
        row = make_row(self.weights, self.mode, prompt, settings, least=self.pieces[0], columns=self.X)
        while (known := self.store.begin(slot, row)) is None:
            yield 0
        for at, length in self._plan(row, known):
            where = row.tokens_1X, np.array([row.start], np.int32), np.array([at], np.int32)
            with on_mesh(self.weights.mesh):
                state, cache = _piece(self.weights, row.request, self.settings, self.store.lend(slot), *where, length)
            self.store.take_back(cache)
            if at + length >= row.start:
                self._put(slot, row, state)
            yield min(length, row.start - at)

    def rehearse(self, threshold: float | None = None) -> dict[int, float]:
        """Compiles all that the lane may need, by rows that it then forgets: seconds of a forward by rows."""
        longest, seconds = self.room - 1, {}
        lengths = {1, min(longest, sum(self.pieces))}
        if self.whole:  # a piece has the length of its prompt's bucket
            lengths = {min(bucket(length, self.pieces[0]), longest) for length in range(1, self.room)}
        length = min(sum(self.pieces), self.room // 2)
        row = [0] * length, RequestSettings(self.room - length, threshold=threshold)
        with self.store.rehearsal():
            for length in sorted(lengths):
                self._begin_again(0, [0] * length, RequestSettings(1))
            self.drop(0)
            for slot in range(self.slots):
                self._begin_again(slot, *row)
                if self.live == len(self.rows):
                    seconds[self.live] = self._time()
                    for gone_on in range(slot + 1):  # or it would have ended before the last one is there
                        self._begin_again(gone_on, *row)
            for slot in range(self.slots):
                self.drop(slot)
        while len(self.rows) > self.least:
            self._resize(self._fewer)
        return seconds

    def pace(self) -> Pace:
        """What forwards cost, measured; compiles all that the lane may need."""
        block = self.unit if self.mode.has_threshold else 0
        if block < 2:
            seconds = self.rehearse()
            return Pace(seconds, seconds, 0)
        commits, mixed = self.rehearse(0.0), self.rehearse(1.0)  # a block a forward; a token a forward
        plain = {rows: (block * mixed[rows] - commits[rows]) / (block - 1) for rows in mixed}
        return Pace(plain, commits, block)

    def _begin_again(self, slot: Hashable, prompt: Sequence[int], settings: RequestSettings) -> None:
        self.drop(slot)
        deque(self.prefill(slot, prompt, settings), maxlen=0)

    def _time(self) -> float:
        """Seconds of a forward of rows that are all alike: the least of a few steps, after one that may compile."""
        times, before = [], 0
        for _ in range(6):
            begun = time.perf_counter()
            settled = self.step()
            seconds, after = time.perf_counter() - begun, int((settled.denoise_B + settled.commit_B).max())
            times += [seconds / (after - before)] if after > before else []
            before = after
        return min(times[1:] or times)

    def step(self) -> Settled:
        """Takes all rows a turn or a few further, as far as few of them end."""
        self._spare_steps = self._spare_steps + 1 if self.live <= self._fewer < len(self.rows) else 0
        if self._spare_steps > _PATIENCE:
            self._resize(self._fewer)
        if self._guides:
            self._guide()
        turns, begun = 1 if self._guides else self.turns, time.perf_counter()
        with on_mesh(self.weights.mesh):
            requests, state = self.state
            state = replace(state, done_B=self.done_B)
            cache = self.store.rows(self.rows)
            state, cache = _proceed(self.weights, requests, self.settings, state, cache, np.int32(turns))
        self.store.keep(cache)
        self.state = requests, state
        settled, self.done_B = state.settled(self.requests), np.array(state.done_B)
        seconds = time.perf_counter() - begun
        if seconds < _SHORT:
            self.turns = min(2 * self.turns, _MOST_TURNS)
        elif seconds > _LONG:
            self.turns = max(self.turns // 2, 1)
        return settled

    def drop(self, slot: Hashable) -> None:
        """Forgets a row, or one that waits."""
        self.store.drop(slot)
        self._waiting = deque(waiting for waiting in self._waiting if waiting[0] != slot)
        if slot in self.rows:
            index = self.rows.index(slot)
            self.rows[index], self.done_B[index] = None, True
            self._guides.pop(slot, None)

    def _guide(self) -> None:
        """Tells the rows that are guided what may come next."""
        requests, state = self.state
        settled = state.settled(requests)
        for index, slot in enumerate(self.rows):
            if slot in self._guides and not self.done_B[index]:
                tokens = settled.tokens_BX[index, settled.columns[index]].tolist()
                self.requests.allowed_BW[index] = self._guides[slot](tokens)
        self.state = replace(requests, allowed_BW=jax.device_put(self.requests.allowed_BW.copy())), state

    def _plan(self, row: Row, at: int) -> Iterator[tuple[int, int]]:
        """(first new column, length) of the pieces of a prompt that is cached up to `at`."""
        if self.whole:
            yield 0, min(bucket(row.start, self.pieces[0]), self.X)
            return
        small, large = self.pieces
        while at < row.start:
            length = large if row.start >= large and row.start - at > small else small
            yield at, length
            at += length

    def _put(self, slot: Hashable, row: Row, state) -> None:
        if self.state is None:
            alike = np.zeros(self.least, np.int32)
            self.rows, self.done_B = [None] * self.least, np.ones(self.least, bool)
            self.state = take_rows((row.request, state), alike)
            self.requests = jax.tree.map(lambda x: x[alike], row.request)
        elif None not in self.rows:
            self._resize(min(2 * len(self.rows), self.slots))
        index = self.rows.index(None)
        self.state = put_row(self.state, (row.request, state), np.int32(index))
        self.store.put(slot, index, len(self.rows))
        jax.tree.map(lambda rows, x: rows.__setitem__(index, x[0]), self.requests, row.request)
        self.rows[index], self.done_B[index] = slot, bool(np.asarray(state.done_B)[0])
        if row.guide is not None:
            self._guides[slot] = row.guide

    @property
    def _fewer(self) -> int:
        """The next lower number of rows."""
        return bucket(-(-len(self.rows) // 2), self.least)

    def _resize(self, size: int) -> None:
        """To so many rows, those in use first."""
        used = [index for index, slot in enumerate(self.rows) if slot is not None]
        index = np.array((used + [0] * size)[:size], np.int32)
        self.state, self.requests = take_rows(self.state, index), jax.tree.map(lambda rows: rows[index], self.requests)
        self.store.resize(index)
        self.rows = ([self.rows[i] for i in used] + [None] * size)[:size]
        self.done_B = np.array([slot is None or self.done_B[i] for i, slot in zip(index, self.rows, strict=True)])
        self._spare_steps = 0


@compiled(static_argnames=("settings", "length"), donate_argnames="cache")
def _piece(weights, request, settings, cache, tokens_1X, start_1, new_1, length):
    state = settings.program(weights, request).piece(cache, tokens_1X, start_1, new_1, length)
    return replace(state, cache=None), state.cache


@compiled(static_argnames="settings", donate_argnames=("state", "cache"))
def _proceed(weights, requests, settings, state, cache, turns):
    """So many turns, or until rows have ended: one, or of many rows a few, for each call takes the host's time."""
    program, done_B, state = settings.program(weights, requests), state.done_B, replace(state, cache=cache)
    few = lambda s: (s.done_B != done_B).sum() * _ENDED <= len(done_B)  # noqa: E731
    goes_on = lambda carry: (carry[0] < turns) & few(carry[1]) & ~carry[1].done_B.all()  # noqa: E731
    state = jax.lax.while_loop(goes_on, lambda carry: (carry[0] + 1, program.turn(carry[1])), (0, state))[1]
    return replace(state, cache=None), state.cache
