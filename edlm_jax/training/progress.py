"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere, nothing but on process 0."""

import sys

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SHOWN = ("loss", "eval_loss", "grad_norm", "masked_fraction", "tokens_per_second", "mfu")


class Reporter:
    """Shows steps and scalars on stderr; a context manager."""

    def __init__(self, first_step: int, steps: int):
        self._steps, self._silent = steps, jax.process_index() != 0
        self._bar = None
        if sys.stderr.isatty() and not self._silent:
            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("", total=steps, completed=first_step)

    def __enter__(self) -> "Reporter":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception):
        if self._bar:
            self._bar.stop()

    def step(self, step: int) -> None:
        """A step has finished."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def scalars(self, step: int, scalars: dict[str, float]) -> None:
        """The scalars of a window or of an evaluation."""
        text = "  ".join(f"{name} {scalars[name]:.4g}" for name in _SHOWN if name in scalars)
        if self._bar:
            self._bar.update(self._task, description=text)
        else:
            self.say(f"step {step}/{self._steps}  {text}")

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._bar:
            self._bar.console.print(text, markup=False)
        elif not self._silent:
            print(text, file=sys.stderr, flush=True)
