"""The thread that runs the engine: rows wait in a bounded queue, get a slot each, and tell their text as it is settled.

Everything that touches the engine happens in this thread; others put rows in, take them back, and are told pieces.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edlm_jax.decoding import Engine, Event, Generation, RequestSettings
from edlm_jax.decoding.stopping import PART, Reader
from edlm_jax.pretrained import Text
from edlm_jax.pretrained.text import read_after
from edlm_jax.serving.metrics import Metrics
from edlm_jax.serving.requests import ApiError


@dataclass(frozen=True)
class Piece:
    """What is new of a row's text, and at its end what became of it."""

    text: str
    finished: str | None = None  # "stop": at an end or before a stop string; "length"; "failed"
    error: str | None = None  # why it failed
    begin: int = 0  # characters told before
    logprobs: Sequence[list[tuple[int, float]]] = ()  # of its tokens, as an `Event` has them


@dataclass(eq=False)
class Row:
    """One choice of an answer."""

    prompt: list[int]
    settings: RequestSettings
    stop: tuple[str, ...]
    streamed: bool  # else its text is told in one piece
    stripped: bool  # the white space around an answer is its chat template's
    tell: Callable[[Piece], None]  # called in the engine's thread
    arrived: float = field(default_factory=time.monotonic)
    told: str = ""
    told_tokens: int = 0
    logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    result: Generation = field(default_factory=lambda: Generation([[]], [[]], [0], [0]))

    def read(self, text: Text, finished: bool) -> tuple[str, list[int], bool]:
        """(text that nothing takes back, its tokens, whether a stop string was found)."""
        reader = Reader(self.stop, text, [self.prompt])
        result = reader.read(self.result)
        stopped = bool(reader.stopped_B[0])
        if stopped or finished:
            self.result, shown, (tokens,) = result, result.texts[0], result.tokens
        else:
            (tokens,) = reader.settled(result, reader.stopped_B)
            shown = read_after(text.shown, self.prompt, tokens).rstrip(PART)
        return shown.strip() if self.stripped else shown, tokens, stopped

    def piece(self, text: str, tokens: list[int], finished: str | None, error: str | None) -> Piece:
        """What is new of these, which are told now."""
        begin, self.told = len(self.told), text
        first, self.told_tokens = self.told_tokens, len(tokens)
        return Piece(text[begin:], finished, error, begin, self.logprobs[first : len(tokens)])


class Loop:
    """The engine, its thread, and its queue, of at most so many rows that wait for a slot."""

    def __init__(self, engine: Engine, text: Text, metrics: Metrics, queue: int):
        self.engine, self.text, self.metrics = engine, text, metrics
        self.most = engine.slots + queue  # rows that can ever be here at once
        self.failed: str | None = None  # why the engine is broken, once it is
        self.on_failure: Callable[[], None] = lambda: None
        self._changed = threading.Condition()  # guards the next three
        self._waiting: deque[Row] = deque()
        self._left: set[Row] = set()  # rows in slots that nobody waits for any more
        self._closed = False
        self._live: dict[int, Row] = {}  # by slot; the thread's own, others only count them
        self._seconds = 1.0  # from a row's arrival to its end, of late
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        metrics.slots.set(engine.slots)
        if engine.cache:
            metrics.cache.set(engine.cache.columns)
            metrics.cache_used.set_function(lambda: engine.cache.used)
            metrics.shared.set_function(lambda: engine.cache.shared)
        metrics.live.set_function(lambda: len(self._live))
        metrics.waiting.set_function(lambda: len(self._waiting))

    def start(self) -> None:
        """Begins to decode."""
        self._thread.start()

    def submit(self, rows: Sequence[Row]) -> None:
        """Queues all of these rows, which the engine does not `refuse`, or, with an ApiError, none."""
        with self._changed:
            if self.failed:
                raise ApiError(503, f"the engine failed: {self.failed}")
            if len(self._live) + len(self._waiting) + len(rows) > self.most:
                seconds, full = math.ceil(self._seconds), "too many requests wait; try again later"
                raise ApiError(429, full, code="rate_limit_exceeded", retry_after=str(seconds))
            self._waiting.extend(rows)
            self._changed.notify()

    def cancel(self, rows: Sequence[Row]) -> None:
        """Frees what these rows have, at once or at the next step; rows that ended may be among them."""
        with self._changed:
            for row in rows:
                if row in self._waiting:
                    self._waiting.remove(row)
                    self.metrics.rows.labels("cancelled").inc()
                else:
                    self._left.add(row)
            self._changed.notify()

    def close(self) -> None:
        """Returns when all rows have ended; none may come any more."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._wait():
                self._turn()
        except Exception as error:
            logging.getLogger(__name__).exception("the engine failed")
            with self._changed:
                self.failed = f"{type(error).__name__}: {error}".splitlines()[0]
                rows = [*self._live.values(), *self._waiting]
                self._waiting.clear()
            for row in rows:
                self._end(row, Piece("", "failed", f"the engine failed: {self.failed}"))
            self.on_failure()

    def _wait(self) -> bool:
        """Until there is something to do; whether there ever will be."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._live or self._closed)
            return bool(self._waiting or self._live)

    def _turn(self) -> None:
        with self._changed:
            for slot in [slot for slot, row in self._live.items() if row in self._left]:
                self._free(slot)
                self.metrics.rows.labels("cancelled").inc()
            self._left.clear()
            while self._waiting and self.engine.free:  # a row that does not go in still waits
                row = self._waiting[0]
                slot = self.engine.insert(row.prompt, row.settings)
                self._live[slot] = self._waiting.popleft()
                self.metrics.prompt_tokens.inc(len(row.prompt))
        self.metrics.steps.inc()
        for event in self.engine.step():
            self._grow(event)

    def _grow(self, event: Event) -> None:
        row, before = self._live[event.slot], self._live[event.slot].result
        tokens, at = before.tokens[0] + event.tokens, before.accepted_at[0] + event.accepted_at
        row.result = Generation([tokens], [at], [event.denoise_forwards], [event.commit_forwards])
        row.logprobs += event.logprobs
        if not before.tokens[0]:
            self.metrics.first.observe(time.monotonic() - row.arrived)
        self.metrics.tokens.inc(len(event.tokens))
        self.metrics.forwards.labels("denoise").inc(event.denoise_forwards - before.denoise_forwards)
        self.metrics.forwards.labels("commit").inc(event.commit_forwards - before.commit_forwards)
        if not (row.streamed or row.stop or event.finished):
            return
        text, tokens, stopped = row.read(self.text, bool(event.finished))
        if stopped or event.finished:
            self._free(event.slot)
            finished = "stop" if stopped or event.finished == "end" else "length"
            error = getattr(row.settings.guide, "error", None)
            self._end(row, row.piece(text, tokens, "failed" if error else finished, error))
        elif row.streamed and text != row.told:
            row.tell(row.piece(text, tokens, None, None))

    def _free(self, slot: int) -> None:
        self.engine.release(slot)
        del self._live[slot]

    def _end(self, row: Row, piece: Piece) -> None:
        seconds = time.monotonic() - row.arrived
        self._seconds += 0.1 * (seconds - self._seconds)
        self.metrics.whole.observe(seconds)
        self.metrics.rows.labels(piece.finished).inc()
        row.tell(piece)
