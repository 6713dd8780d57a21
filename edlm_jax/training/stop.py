"""When to stop before the last step: SIGTERM, which is how clouds and schedulers announce that a machine goes away."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable

import jax
from jax.experimental import multihost_utils

HEARD = "SIGTERM heard: the step that runs now is finished and saved, then this run ends"


class StopSignal(contextlib.ExitStack):
    """Turns SIGTERM into a question that the loop asks between steps; a context manager that restores the old handler.

    `say` is told at once, by a thread: Python's own handlers wait for the main thread, which waits for the device. With
    several processes JAX's own preemption service catches the signal, says so, and makes all stop at the same step.
    """

    def __init__(self, say: Callable[[str], None]):
        super().__init__()
        self._say, self._seen = say, threading.Event()

    def __enter__(self) -> "StopSignal":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            # What the system tells the process arrives as bytes in a pipe, whatever the main thread is in.
            arrivals, entrance = os.pipe()
            os.set_blocking(entrance, False)
            listener = threading.Thread(target=self._listen, args=(arrivals,), daemon=True)
            listener.start()
            self.callback(listener.join)
            self.callback(os.close, entrance)
            self.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(entrance))
            self.callback(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
            signal.signal(signal.SIGTERM, lambda *_: self._seen.set())
        return self

    @property
    def heard(self) -> bool:
        """Has the signal come? With several processes that is not known between steps: False."""
        return self._seen.is_set()

    def requested(self, step: int) -> bool:
        """Should the run stop before this step?"""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.heard

    def _listen(self, arrivals: int) -> None:
        with open(arrivals, "rb", buffering=0) as pipe:
            if any(received[0] == signal.SIGTERM for received in iter(lambda: pipe.read(1), b"")):
                self._seen.set()
                self._say(HEARD)
                pipe.read()  # whatever comes until the entrance is closed
