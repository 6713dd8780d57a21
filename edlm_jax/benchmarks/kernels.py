"""What the GPU compiler wrote down of the kernels of ours in a program: shared memory, registers, spills.

It is asked for a dump (`xla_dump_to`); there, the sequence of launches names each kernel with its shared memory, and
its PTX is assembled once more by the ptxas that jax[cuda] brings, which says what registers it takes. Seen with jax
0.10.2; a dump without those lines gives no kernels, and the tests would say so.
"""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

_LAUNCH = (
    r"kCustomKernel .*\] (\w+?_kernel)((?:__\d+)?) grid: \[[\d, ]+\] threads: \[([\d, ]+)\]\s+shared_memory: (\d+)"
)
_REGISTERS, _SPILLS = r"Used (\d+) registers", r"(\d+) bytes spill stores"


def kernels(dump: Path) -> list[dict[str, Any]]:
    """A dict a kernel: `calls` in the program's text, shared_bytes and threads of a block; registers and spill_bytes of
    a thread (None: no ptxas). XLA's own fusions are left out.
    """
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(dump.glob("*.thunk_sequence.txt")):
        for name, copy, threads, shared in re.findall(_LAUNCH, file.read_text(encoding="utf-8")):
            x, y, z = map(int, threads.split(","))
            new = dict(name=name, calls=0, threads=x * y * z, shared_bytes=int(shared), program=name + copy)
            found.setdefault(name, new)["calls"] += 1
    return [kernel | _assembled(dump, f".entry {kernel.pop('program')}(") for _, kernel in sorted(found.items())]


def _assembled(dump: Path, entry: str) -> dict[str, int | None]:
    ptxas, files = _ptxas(), sorted(dump.glob("*.ptx"))
    ptx = next((file for file in files if entry in file.read_text(encoding="utf-8")), None)
    if ptx is None or ptxas is None:
        return dict(registers=None, spill_bytes=None)
    target = re.search(r"^\.target\s+(\w+)", ptx.read_text(encoding="utf-8"), re.MULTILINE)[1]
    command = [ptxas, "--verbose", "--gpu-name", target, str(ptx), "--output-file", "/dev/null"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return dict(registers=int(re.search(_REGISTERS, said)[1]), spill_bytes=int(re.search(_SPILLS, said)[1]))


def _ptxas() -> str | None:
    """Of the wheels beside this Python, else of the machine."""
    spec = importlib.util.find_spec("nvidia")
    places = spec.submodule_search_locations if spec else ()
    inside = (str(file) for place in places for file in sorted(Path(place).glob("*/bin/ptxas")))
    return next(inside, None) or shutil.which("ptxas")
