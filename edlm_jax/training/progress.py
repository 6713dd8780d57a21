"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere, nothing but on process 0."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from edlm_jax.reports.progress import show_seconds

# First what is in nats per token, as `edlm evaluate --task=heldout` is (eval_bound is its number), then the optimised.
_SHOWN = ("diffusion_loss", "ar_loss", "eval_bound", "eval_diffusion_loss", "eval_ar_loss", "loss", "eval_loss")
_SHOWN += ("grad_norm", "masked_fraction", "tokens_per_second", "mfu")


class Reporter:
    """Says on stderr what a run does; a context manager. Without a terminal no silence lasts longer than `patience`."""

    def __init__(self, steps: int, patience: float = 30.0):  # seconds after which a person wants to hear something
        self._steps, self._silent, self._patience = steps, jax.process_index() != 0, patience
        self._begun: tuple[int, float] | None = None  # (step, when) from which the time left is reckoned
        self._said = self._since = time.monotonic()
        self._what, self._ended, self._bar = "starting", threading.Event(), None
        if sys.stderr.isatty() and not self._silent:
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.description}"), console=Console(stderr=True))
            self._task = self._bar.add_task("", total=steps)
        self._watch = threading.Thread(target=self._break_silences, daemon=True)

    def __enter__(self) -> "Reporter":
        if not self._bar and not self._silent:
            self._watch.start()
        return self

    def __exit__(self, *exception):
        self._ended.set()
        if self._bar:
            self._bar.stop()
        elif not self._silent:
            self._watch.join()

    def begin(self, step: int) -> None:
        """Steps begin, or go on, at this one."""
        self._doing(f"step {step + 1} of {self._steps}")
        if self._bar:
            self._bar.start()
            self._bar.update(self._task, completed=step)

    @contextlib.contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """While something else than a step is done."""
        before = self._what
        self._doing(what)
        yield
        self._doing(before)

    @contextlib.contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """While a program is compiled: says so, and how long it took."""
        start = time.monotonic()
        self.say(f"compiling {what}")
        with self.busy(f"compiling {what}"):
            yield
        seconds = time.monotonic() - start
        self.say(f"compiled in {show_seconds(seconds)}")
        if self._begun:  # it says nothing of how long steps take
            self._begun = self._begun[0], self._begun[1] + seconds

    def step(self, step: int, *, logged: bool) -> None:
        """A step has finished; if it is `logged`, its scalars follow."""
        now = time.monotonic()
        took, self._begun = now - self._since, self._begun or (step, now)
        if not self._bar and not logged and now - self._said + took >= self._patience:
            self._say_step(step, "")  # the next one may end too late
        self.begin(step)

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """The scalars of a window or of an evaluation."""
        text = "  ".join(f"{name} {scalars[name]:.4g}" for name in _SHOWN if name in scalars)
        if self._bar:
            self._bar.update(self._task, description=text)
        elif text:
            self._say_step(step, text)

    def say(self, text: str) -> None:
        """A line of its own."""
        self._said = time.monotonic()
        if self._bar:
            self._bar.console.print(text, markup=False)
        elif not self._silent:
            print(text, file=sys.stderr, flush=True)

    def _say_step(self, step: int, text: str) -> None:
        self.say("  ".join(part for part in (f"step {step}/{self._steps}", text, self._left(step)) if part))

    def _left(self, step: int) -> str:
        first, when = self._begun or (step, 0.0)
        if step == first or step >= self._steps:
            return ""
        return f"{show_seconds((time.monotonic() - when) / (step - first) * (self._steps - step))} left"

    def _doing(self, what: str) -> None:
        self._what, self._since = what, time.monotonic()

    def _break_silences(self) -> None:
        while not self._ended.wait(self._patience / 10):
            now = time.monotonic()
            if now - self._said >= self._patience:
                self.say(f"{self._what}: {show_seconds(now - self._since)} so far")
