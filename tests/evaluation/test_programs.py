"""Programs that a model wrote: what counts as passed, and what is left of one afterwards."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edlm_jax.evaluation.programs import passes

ADD = "def add(a, b):\n    return a + b\n"
TEST = "assert add(1, 2) == 3\n"


def test_a_program_passes_when_it_comes_to_its_end():
    assert passes(ADD + TEST, 10)
    assert passes("import dataclasses\n\n@dataclasses.dataclass\nclass A:\n    x: 'int'\n\nassert A(3).x == 3", 10)
    assert passes("print('\\u00e9' * 100000)\nimport sys\nsys.stderr.write('x' * 100000)", 10)


@pytest.mark.parametrize(
    "program",
    [
        ADD.replace("+", "-") + TEST,
        "print('passed')\n" + ADD.replace("+", "-") + TEST,
        ADD + "import sys\nsys.exit(0)\n" + TEST,  # an exit code of 0 that comes before the test
        ADD + "import os\nos._exit(0)\n" + TEST,
        "import os\nos.write(1, b'passed')\nos.write(3, b'passed')\n" + TEST,
        "def add(a, b)\n    return a + b",
        "input()",  # its standard input holds nothing
        "x = bytearray(5 * 2**30)",
        "with open('big', 'wb') as file:\n    file.write(bytes(2**24 + 1))",
        "while True:\n    pass",
        "import time\ntime.sleep(1000)",
        "\ud800",
    ],
)
def test_what_does_not_reach_its_end_does_not_pass(program):
    assert not passes(program, 1)


def test_it_runs_in_an_empty_folder_without_our_variables(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "secret")
    seen = tmp_path / "seen"
    look = "import os\nassert 'HF_TOKEN' not in os.environ and os.listdir() == []\nopen('left', 'w').write('x')\n"
    assert passes(f"{look}open({str(seen)!r}, 'w').write(os.getcwd())", 10)
    assert not os.path.exists(seen.read_text())  # removed afterwards


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux's kernel to kill it")
def test_it_does_not_outlive_an_evaluation_that_is_killed(tmp_path):
    pid = tmp_path / "pid"
    program = f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()) + '.')\ntime.sleep(1000)\n"
    script = f"from edlm_jax.evaluation.programs import passes; passes({program!r}, 1000)"
    with subprocess.Popen([sys.executable, "-c", script]) as evaluation:
        while not (pid.exists() and pid.read_text().endswith(".")):
            time.sleep(0.05)
        evaluation.kill()
    own = Path("/proc", pid.read_text().removesuffix("."), "stat")
    for _ in range(100):
        if not own.exists() or own.read_text().rpartition(")")[2].split()[0] == "Z":  # nobody may wait for orphans here
            return
        time.sleep(0.05)
    os.kill(int(own.parent.name), signal.SIGKILL)
    pytest.fail("the program goes on")


@pytest.mark.parametrize(("end", "passed"), [("while True: pass", False), ("pass", True)])
def test_its_children_do_not_outlive_it(end, passed, tmp_path):
    pid = tmp_path / "pid"
    program = (
        "import os, time\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    time.sleep(1000)\n"
        f"open({str(pid)!r}, 'w').write(str(child))\n"
        f"{end}\n"
    )
    assert passes(program, 10 if passed else 1) == passed
    state = Path("/proc", pid.read_text(), "stat")
    for _ in range(200):  # a killed process is there until it is waited for
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child still runs")
