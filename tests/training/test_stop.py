"""SIGTERM is heard whatever the main thread is doing."""

import ctypes
import os
import signal
import threading

from edlm_jax.training.stop import HEARD, StopSignal


def test_sigterm_is_said_while_the_main_thread_runs_no_python():
    out, entrance = os.pipe()
    before = signal.getsignal(signal.SIGTERM)
    send = threading.Thread(target=lambda: signal.pthread_kill(threading.get_ident(), signal.SIGTERM))
    too_late = threading.Timer(30, os.write, (entrance, b"nobody said anything"))
    said = ctypes.create_string_buffer(200)
    with StopSignal(lambda text: os.write(entrance, text.encode())) as stop:
        assert not stop.heard and not stop.requested(0)
        send.start(), too_late.start()
        ctypes.CDLL(None).read(out, said, 200)  # as one waits for a device: no signal handler of Python's runs here
        too_late.cancel()
        send.join()
    assert said.value.decode() == HEARD
    assert stop.heard and stop.requested(1)
    assert signal.getsignal(signal.SIGTERM) is before and signal.set_wakeup_fd(-1) == -1
    os.close(out), os.close(entrance)


def test_sigterm_is_said_once_and_other_signals_are_not():
    said, before = [], signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with StopSignal(said.append) as stop:
            signal.raise_signal(signal.SIGUSR1)
            assert not stop.heard
            signal.raise_signal(signal.SIGTERM), signal.raise_signal(signal.SIGTERM)
            assert stop.heard
        assert said == [HEARD]
    finally:
        signal.signal(signal.SIGUSR1, before)
