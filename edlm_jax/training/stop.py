"""When to stop before the last step: SIGTERM, which is how clouds and schedulers announce that a machine goes away."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class StopSignal:
    """Turns SIGTERM into a question that the loop asks between steps; a context manager that restores the old handler.

    With several processes JAX's own preemption service catches the signal and makes all of them stop at the same step.
    """

    def __init__(self):
        self._seen = threading.Event()
        self._previous = None

    def __enter__(self) -> "StopSignal":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, lambda *_: self._seen.set())
        return self

    def __exit__(self, *exception):
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def requested(self, step: int) -> bool:
        """Should the run stop before this step?"""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._seen.is_set()
