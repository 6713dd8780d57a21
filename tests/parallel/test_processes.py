"""Real processes on CPU devices, started by launch/local.sh: the same run as one process, killed, stopped, refused."""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from edlm_jax.errors import InputError
from edlm_jax.parallel.processes import ADDRESS, COUNT, INDEX, connect
from edlm_jax.training.checkpoint import latest_step, load_trained
from edlm_jax.training.run import Run
from edlm_jax.training.train import train

ROOT = Path(__file__).parents[2]
PATIENCE = 1200  # seconds, of a busy machine: what hangs is seen all the same
WITH_US = ["setpriv", "--pdeathsig=TERM"]  # what follows gets SIGTERM where the tests are killed: a run may be endless
EDLM = [sys.executable, "-m", "edlm_jax.commands.main"]
CONFIG = """
import pathlib
from tests.training.conftest import make_config

def get_config():
    c = make_config(pathlib.Path({corpus!r}), pathlib.Path({checkpoint!r}))
    c.init.mask_embedding = "noise"
    c.data.shards = 2
    c.checkpoint.update(every=1, keep_last=10**6)  # nothing is deleted while the test looks
    return c
"""


class Runs:
    """Starts `edlm train`, as one process or through the launcher; their stderr goes to files."""

    def __init__(self, directory: Path, config: str):
        self.directory, self.started = directory, []
        (directory / "config.py").write_text(config)
        self.env = os.environ | {
            "PYTHONPATH": str(ROOT),
            "EDLM_COMMAND": " ".join(EDLM),
        }

    def start(self, workdir: str, steps: int, *, processes: int = 1, devices_each: int = 1, **env) -> subprocess.Popen:
        """The run in the background; `.log` of what is returned is its stderr."""
        launcher = [str(ROOT / "launch" / "local.sh"), f"--processes={processes}", f"--devices-each={devices_each}"]
        command = EDLM if processes == 1 else [*launcher, "--grace=5", "--"]
        command = [*command, "train", f"--config={self.directory / 'config.py'}", f"--config.steps={steps}", "--json"]
        log = self.directory / f"{len(self.started)}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [*WITH_US, *command, f"--workdir={self.directory / workdir}"],
                cwd=ROOT,
                env=self.env | {"JAX_NUM_CPU_DEVICES": str(devices_each)} | env,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        process.log = log
        self.started.append(process)
        return process

    def finish(self, *args, **kwargs) -> dict:
        """The summary of a run that finishes."""
        process = self.start(*args, **kwargs)
        out, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, process.log.read_text()
        return json.loads(out)

    def params(self, workdir: str, step: int) -> dict:
        return nnx.to_pure_dict(nnx.state(load_trained(self.directory / workdir, step=step)))

    def losses(self, workdir: str) -> dict[int, float]:
        lines = (self.directory / workdir / "metrics.jsonl").read_text().splitlines()
        return {line["step"]: line["loss"] for line in map(json.loads, lines) if "loss" in line}


@pytest.fixture(scope="module")
def runs(corpus, checkpoint, tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("runs"), CONFIG.format(corpus=str(corpus), checkpoint=str(checkpoint)))
    yield runs
    for process in runs.started:
        if process.poll() is None:  # a test has failed
            process.terminate()
            process.wait(PATIENCE)


def children(launcher: subprocess.Popen) -> list[int]:
    """The process ids of the launcher's edlm processes, in the order of their numbers."""
    found = {}
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            parent = int(environ.with_name("stat").read_text().rpartition(")")[2].split()[1])
            variables = dict(pair.split("=", 1) for pair in environ.read_text().split("\0") if "=" in pair)
        except OSError:  # it has ended
            continue
        if parent == launcher.pid and "JAX_PROCESS_ID" in variables:
            found[int(variables["JAX_PROCESS_ID"])] = int(environ.parent.name)
    return [found[number] for number in sorted(found)]


def signal_one_after_a_checkpoint(launcher: subprocess.Popen, workdir: Path, place: int, number: int) -> int:
    """Sends the signal to one process once there is a checkpoint that was not there before; the exit code."""
    before = latest_step(workdir)
    while latest_step(workdir) == before and launcher.poll() is None:
        time.sleep(0.05)
    os.kill(children(launcher)[place], number)
    launcher.communicate(timeout=PATIENCE)
    return launcher.returncode


def assert_close(tree, other, tolerance):
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def test_two_processes_stopped_and_killed_end_where_one_ends_bitwise(runs):
    """SIGTERM to one of two, then SIGKILL to the other, then on to the end: 2 devices sum in one order only."""
    launcher = runs.start("two", 10**6, processes=2)
    assert signal_one_after_a_checkpoint(launcher, runs.directory / "two", 1, signal.SIGTERM) == 143
    stopped = latest_step(runs.directory / "two")
    log = launcher.log.read_text()
    for number in (0, 1):
        assert f"process {number} of 2: 1 of 2 devices (cpu), mesh data 1 x fsdp 2" in log
        assert f"[{number}] edlm: stopped at step {stopped} of 1000000; the same command continues" in log
    assert max(runs.losses("two")) == stopped and log.count(f"step {stopped}/") == 1
    launcher = runs.start("two", 10**6, processes=2)
    assert signal_one_after_a_checkpoint(launcher, runs.directory / "two", 0, signal.SIGKILL) == 128 + signal.SIGKILL
    steps = latest_step(runs.directory / "two") + 1
    assert runs.finish("two", steps, processes=2)["step"] == steps
    assert runs.finish("one", steps, devices_each=2)["completed"]
    assert runs.losses("two") == runs.losses("one")
    assert_close(runs.params("two", steps), runs.params("one", steps), 0.0)
    assert_refused_when_not_shared(runs, "two", steps)


def assert_refused_when_not_shared(runs, workdir: str, newest: int) -> None:
    """Two processes, of which only the first sees the checkpoints: both say so."""
    env = dict(JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{free_port()}", JAX_NUM_PROCESSES="2")
    both = [
        runs.start(name, newest + 1, JAX_PROCESS_ID=str(index), **env) for index, name in enumerate((workdir, "alone"))
    ]
    for process in both:
        process.communicate(timeout=PATIENCE)
        lines = process.log.read_text().splitlines()
        assert process.returncode == 2 and f"(-1 = none), by process: [{newest}, -1]" in lines[-1], lines
    assert not (runs.directory / "alone").exists()


def test_four_processes_killed_go_on_as_two_and_end_where_one_ends(runs):
    """The two shards of the data are read by two processes each, then by one each; in the reference by one process."""
    launcher = runs.start("four", 10**6, processes=4)
    assert signal_one_after_a_checkpoint(launcher, runs.directory / "four", 3, signal.SIGKILL) == 128 + signal.SIGKILL
    assert "config.data.shards=2: each document is tokenised by 2 processes" in launcher.log.read_text()
    steps = latest_step(runs.directory / "four") + 1
    assert runs.finish("four", steps, processes=2, devices_each=2)["step"] == steps
    config = runpy.run_path(str(runs.directory / "config.py"))["get_config"]()
    config.steps = steps
    train(Run.of(config), runs.directory / "here")
    ours, theirs = runs.losses("four"), runs.losses("here")
    assert list(ours) == list(theirs)
    # Not bitwise: the sums of four devices are added in another order between processes than within one.
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5)
    assert_close(runs.params("four", steps), runs.params("here", steps), 1e-5)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def refused(runs, *argv: str, **env) -> str:
    """The one line of a process that refuses to start."""
    command = [*EDLM, *argv, f"--config={runs.directory / 'config.py'}", f"--workdir={runs.directory / 'none'}"]
    done = subprocess.run(command, cwd=ROOT, env=runs.env | env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("index", [0, 1])
def test_a_peer_that_never_comes_is_a_timeout_that_says_so(index, runs):
    address = f"127.0.0.1:{free_port()}"
    env = dict(JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(index))
    line = refused(runs, "train", "--wait=2", **env)
    assert line.startswith(f"edlm: process {index} of 2 waited 2 s for the others (coordinator {address}): start all")


def test_variables_that_make_no_sense_are_refused(monkeypatch):
    def refused_with(address, count, index):
        for name, value in zip((ADDRESS, COUNT, INDEX), (address, count, index), strict=True):
            monkeypatch.setenv(name, value)
        with pytest.raises(InputError) as caught:
            connect(timeout=1)
        return str(caught.value)

    assert refused_with("127.0.0.1:1", "2", "2") == "JAX_PROCESS_ID=2 is not one of the 2 processes 0..1"
    assert "JAX_PROCESS_ID is set but not JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES" in refused_with("", "", "1")
    assert "the port of JAX_COORDINATOR_ADDRESS (somewhere) must be numbers" in refused_with("somewhere", "2", "1")
    assert "(localhost:65536) must end in a port from 1 to 65535" in refused_with("localhost:65536", "2", "0")
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        assert f"port {port} of JAX_COORDINATOR_ADDRESS is not free" in refused_with(f"127.0.0.1:{port}", "2", "0")
