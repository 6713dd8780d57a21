"""Runs programs that a model wrote, to see whether they come to their end.

This is no sandbox. A program runs as the user who evaluates, and can read and write what that user can, and use the
network. It runs in a process of its own, by no shell, in an empty folder that is removed afterwards, without the
environment's variables, with limits on time, memory and the size of files, and is killed with its children at the end;
a child that leaves its process group outlives that. On Linux the program (its children not) ends with an evaluation
that is killed. Evaluate models that you do not trust in a container or a virtual machine without a network.
"""

import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from os import defpath, killpg
from pathlib import Path

_CHILD = Path(__file__).with_name("run_program.py")
_MEMORY = 4 * 2**30  # bytes of address space


def passes(program: str, seconds: float) -> bool:
    """Does the Python program come to its end, without an exception, in the time? What it prints plays no part."""
    word = secrets.token_hex(16)  # that the program does not know: an exit code of 0 it could give itself
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as verdict,
        tempfile.TemporaryDirectory(prefix="edlm-program-", ignore_cleanup_errors=True) as folder,
    ):
        given.write(f"{word}\n{int(seconds) + 1}\n{_MEMORY}\n{program}".encode(errors="surrogatepass"))
        given.seek(0)
        streams = dict(stdin=given, stdout=verdict, stderr=subprocess.DEVNULL)
        where = dict(cwd=folder, env={"PATH": defpath, "HOME": folder, "TMPDIR": folder}, start_new_session=True)
        process = subprocess.Popen([sys.executable, "-I", str(_CHILD)], **streams, **where)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        finally:
            with suppress(ProcessLookupError, PermissionError):  # nothing is left of it
                killpg(process.pid, signal.SIGKILL)
            process.wait()
        verdict.seek(0)
        return verdict.read() == word.encode()
