"""The child of programs.py: runs the program on its standard input, then proves by a word that it came to its end.

Standard input has: the word, seconds of CPU, bytes of memory, and, on the lines after these, the program. The word goes
to standard output, which the program does not have. This file is run by its path and imports nothing of ours.
"""

import ctypes
import os
import resource
import signal
import sys
import types

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Reads, limits itself, runs."""
    word, seconds, memory, program = sys.stdin.buffer.read().decode().split("\n", 3)
    if sys.platform == "linux":  # it ends with whoever waits for it, killed or not
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    verdict, nowhere = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    limits = dict(RLIMIT_CPU=int(seconds), RLIMIT_AS=int(memory), RLIMIT_FSIZE=2**24, RLIMIT_CORE=0)
    for name, limit in limits.items():
        _, hard = resource.getrlimit(getattr(resource, name))
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(getattr(resource, name), (limit, limit))
    module = sys.modules["program"] = types.ModuleType("program")  # what looks its own module up finds it
    exec(compile(program, "program", "exec"), module.__dict__)
    os.write(verdict, word.encode())
    os._exit(0)  # whatever the program left running has no say


main()
