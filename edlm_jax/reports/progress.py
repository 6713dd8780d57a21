"""What a person sees of a job of many parts: a bar and the time left on a terminal, a line for each part elsewhere."""

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Counts finished parts on stderr; a context manager. `live=False` leaves the terminal's last line to others."""

    def __init__(self, total: int, what: str, live: bool = True, clock: Callable[[], float] = time.perf_counter):
        self._total, self._what, self._clock, self._began = total, what, clock, clock()
        self._bar = None
        if live and sys.stderr.isatty():
            said = TextColumn("{task.description}", markup=False)
            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), said)
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(what, total=total)

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception):
        if self._bar:
            self._bar.stop()

    def done(self, count: int, text: str = "") -> None:
        """`count` parts in all are finished; `text` says what the last one was."""
        what = f"{self._what}: {text}" if text else self._what
        if self._bar:
            self._bar.update(self._task, completed=count, description=what)
            return
        left = (self._clock() - self._began) / max(count, 1) * (self._total - count)
        print(f"[{count}/{self._total}] {what}" + (f", {show_seconds(left)} left" if left else ""), file=sys.stderr)


def show_seconds(seconds: float) -> str:
    """For people: 48 s, 12 min, 3.2 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
