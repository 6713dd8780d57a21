"""Plants each fault in a copy of the checkout and says whether tests see it.

    python -m tests.faults.run                              # those of `make check` against every fault
    python -m tests.faults.run --fault=prompt tests/data    # other tests, against the faults with this in their name

The tests of the fault's own room run first and the first failure ends a run. What was compiled for one fault serves the
next: a fault that is seen took 14 to 205 seconds on one core of an AMD EPYC that others used, too.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.faults import FAULTS, Fault

ROOT = Path(__file__).parents[2]
CHECK = ROOT / "tests" / "check.txt"
LEFT_OUT = (".*", "__pycache__", "runs", "build", "dist", "*.egg-info")
LIMIT = 300  # seconds: a fault may make a loop endless, and that is seen


def main() -> None:
    """Prints a line a fault, then how many were seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", default="", help="only those with this in their name or file")
    parser.add_argument("--part", default="0/1", help="I/N: every Nth fault from the Ith on, for several processes")
    checked = CHECK.read_text().splitlines()
    parser.add_argument("tests", nargs="*", default=checked, help="default: those of `make check`")
    args = parser.parse_args()
    first, step = map(int, args.part.split("/"))
    chosen = [fault for fault in FAULTS if args.fault in f"{fault.name} {fault.file}"][first::step]
    seen = 0
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory, "checkout")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
        compiled = str(Path(directory, "compiled"))
        environment = os.environ | {"PYTHONPATH": str(copy), "JAX_COMPILATION_CACHE_DIR": compiled}
        for fault in chosen:
            began = time.monotonic()
            by = plant(fault, copy, args.tests, environment)
            seen += by is not None
            print(f"{'seen' if by else 'NOT SEEN':8} {time.monotonic() - began:5.0f} s  {fault.name}: {by}", flush=True)
    print(f"{seen} of {len(chosen)} faults seen")


def plant(fault: Fault, copy: Path, tests: list[str], environment: dict[str, str]) -> str | None:
    """What saw it, None if nothing did."""
    file = copy / fault.file
    text = file.read_text()
    file.write_text(text.replace(fault.old, fault.new))
    own_first = sorted(tests, key=lambda test: not test.startswith(f"tests/{fault.room}"))
    command = [sys.executable, "-m", "pytest", "-qx", "--tb=no", "-p", "no:cacheprovider", *own_first]
    try:
        ran = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return "the time limit"
    finally:
        file.write_text(text)
    if ran.returncode == 0:
        return None
    failed = [line.split(" - ")[0] for line in ran.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0] if failed else (ran.stdout + ran.stderr)[-200:]


if __name__ == "__main__":
    main()
