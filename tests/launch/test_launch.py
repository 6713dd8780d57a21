"""The launchers: clean to shellcheck; --dry-run prints what a run does and runs none of it; bad input is one line."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[2] / "launch"
COMMAND = ["train", "--config=c.py", "--config.data.sources=({'path': \"a b/*.jsonl\"},)", "--workdir=with space/$HOME"]
ENOUGH = {
    "local": [],
    "tpu_vm": ["--name=q", "--zone=us-central2-b", "--accelerator=v4-32"],
    "slurm": ["--name=q"],
    "gke": ["--name=q", "--image=i", "--accelerator=tpu-v5-lite-podslice", "--topology=4x4"],
}
ACTIONS = {
    "tpu_vm": ("start", "logs", "status", "stop", "delete"),
    "slurm": ("start", "logs", "status", "stop", "delete"),
    "gke": ("start", "logs", "status", "delete"),
}
TOOLS = ("gcloud", "kubectl", "sbatch", "squeue", "scancel", "tail", "tar", "mkdir", "env", "edlm")
GENTLE = ("dirname", "sed", "cat", "seq", "sleep", "bash")


@pytest.fixture
def path(tmp_path):
    """A PATH whose tools only write down how they were called; gcloud finds the slice once it has been asked for."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for tool in TOOLS:
        stub = f"""#!/bin/bash
            [[ $* != *describe* || ! -e {tmp_path}/ran || $(<{tmp_path}/ran) != *create* ]] || echo ACTIVE
            printf -v line '%s\\x1f' {tool} "$@"
            echo "$line" >> {tmp_path}/ran  # in one piece: processes write at the same time"""
        (directory / tool).write_text(stub)
        (directory / tool).chmod(0o755)
    for tool in GENTLE:
        found = next(Path(place, tool) for place in ("/usr/bin", "/bin") if Path(place, tool).exists())
        (directory / tool).symlink_to(found)
    return directory


def launch(path, name, *arguments, **env):
    environ = {"PATH": str(path), "HOME": "/home/someone"} | env
    command = ["/bin/bash", str(LAUNCH / f"{name}.sh"), *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30)


def dry_run(path, name, *arguments, **env) -> str:
    done = launch(path, name, "--dry-run", *arguments, **env)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert not (path.parent / "ran").exists()
    return done.stdout


def commands_in(text: str) -> list[list[str]]:
    """The words of each line, less a document that follows it."""
    lines = [
        line.partition(" <<YAML")[0] for line in re.sub(r"(<<YAML).*\nYAML\n", r"\1\n", text, flags=re.S).splitlines()
    ]
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda script: script.name)
def test_shellcheck_finds_nothing(script):
    command = [Path(sys.executable).with_name("shellcheck"), "--external-sources", f"launch/{script.name}"]
    done = subprocess.run(command, cwd=LAUNCH.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert os.access(script, os.X_OK) == (script.stem in ENOUGH)


@pytest.mark.parametrize("name", ENOUGH)
def test_help_names_every_option_with_its_variable(name, path):
    text = launch(path, name, "--help").stdout
    source = (LAUNCH / f"{name}.sh").read_text()
    options = source.partition('\nparse "')[2].partition('"')[0].split()
    assert len(options) > 5 and "--dry-run" in text and "set -euo" not in text
    for option in options:
        described = text.partition(f"\n  --{option}=")[2].partition("\n  --")[0]
        variable = "EDLM_" + ("COMMAND" if option == "edlm" else option.upper().replace("-", "_"))
        assert f"({variable}" in described and f"${{{variable}:-" in source


@pytest.mark.parametrize("name, action", [(name, action) for name, actions in ACTIONS.items() for action in actions])
def test_what_a_dry_run_prints_is_what_a_run_does(name, action, path):
    """Word for word, spaces and quotes in arguments included."""
    arguments = [action, *ENOUGH[name], "--", *COMMAND]
    printed = commands_in(dry_run(path, name, *arguments))
    done = launch(path, name, *arguments)
    assert done.returncode == 0, done.stderr
    ran = [line.split("\x1f")[:-1] for line in (path.parent / "ran").read_text().splitlines()]
    assert printed == ran and len(ran) >= 1


def test_start_is_the_action_without_one(path):
    for name, actions in ACTIONS.items():
        assert actions[0] == "start"
        words = [*ENOUGH[name], "--", *COMMAND]
        assert dry_run(path, name, *words) == dry_run(path, name, "start", *words)


def test_local_starts_every_process_as_printed(path):
    gpus = commands_in(dry_run(path, "local", "--device=gpu", "--devices-each=2", "--", "train"))
    assert [words[4] for words in gpus] == ["JAX_LOCAL_DEVICE_IDS=0,1", "JAX_LOCAL_DEVICE_IDS=2,3"]
    arguments = ["--processes=3", "--port=23456", *ENOUGH["local"], "--", *COMMAND]
    printed = commands_in(dry_run(path, "local", *arguments))
    assert launch(path, "local", *arguments).returncode == 0
    ran = [line.split("\x1f")[:-1] for line in (path.parent / "ran").read_text().splitlines()]
    assert printed == sorted(ran) and [words[3] for words in printed] == [f"JAX_PROCESS_ID={i}" for i in range(3)]
    assert all(words[-4:] == COMMAND and words[-5] == "edlm" for words in printed)


def with_tools(directory: Path, **scripts: str) -> dict[str, str]:
    """An environment in which these names are bash scripts."""
    for name, script in scripts.items():
        (directory / name).write_text(f"#!/bin/bash\n{script}\n")
        (directory / name).chmod(0o755)
    return os.environ | {"PATH": f"{directory}:{os.environ['PATH']}"}


def test_local_passes_on_a_signal_that_comes_while_it_starts(tmp_path):
    """The first process is there, the second not yet: that of a GPU waits here for `seq`."""
    seq = f"[[ $1 == 0 ]] || {{ touch {tmp_path}/second; sleep 1; }}; echo $1"
    env = with_tools(tmp_path, edlm=f"echo $$ >> {tmp_path}/pids; exec sleep 60", seq=seq)
    with subprocess.Popen([LAUNCH / "local.sh", "--device=gpu", "--", "train"], env=env) as launcher:
        while not (tmp_path / "second").exists() or not (tmp_path / "pids").exists():
            time.sleep(0.01)
        launcher.terminate()
    assert launcher.returncode == 143
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_local_ends_behind_the_last_line(tmp_path):
    """However slow its labels are; a process that is left behind keeps it for two seconds, not for ever."""
    sed = f'sleep 0.5; exec {shutil.which("sed")} "$@"'
    env = with_tools(tmp_path, edlm="sleep 60 & echo $! >&2; echo the reason >&2; exit 2", sed=sed)
    log = tmp_path / "log"
    with log.open("w") as file:
        assert subprocess.run([LAUNCH / "local.sh", "--", "train"], env=env, stderr=file, timeout=30).returncode == 2
    lines = log.read_text().splitlines()
    assert sorted(line for line in lines if "reason" in line) == ["[0] the reason", "[1] the reason"]
    for line in lines:
        if "reason" not in line:
            os.kill(int(line.split()[1]), signal.SIGKILL)


@pytest.mark.parametrize(
    ("other", "code"), [("sleep 0.5; kill -9 $$", 137), ("kill -9 $$", 137), ("exec sleep 30", 1), ("exit 0", 1)]
)
def test_local_ends_with_the_code_of_the_cause(tmp_path, other, code):
    """Process 0 fails: of another one that was killed, if there is one. Whom the launcher kills is none of these."""
    env = with_tools(tmp_path, edlm=f"[[ $JAX_PROCESS_ID == 0 ]] && exit 1\n{other}")
    command = [LAUNCH / "local.sh", "--grace=2", "--", "train"]
    assert subprocess.run(command, env=env, capture_output=True).returncode == code


def test_local_waits_for_nobody_where_one_fails_while_all_stop(tmp_path):
    env = with_tools(tmp_path, edlm="case $JAX_PROCESS_ID in 0) exit 143 ;; 1) sleep 1; exit 1 ;; esac; exec sleep 60")
    command = [LAUNCH / "local.sh", "--processes=3", "--grace=1", "--", "train"]
    assert subprocess.run(command, env=env, capture_output=True, timeout=30).returncode == 143


def test_the_command_arrives_on_the_other_side_of_every_shell(path):
    """What the last shell splits is what was given, through ssh and through Slurm's script."""
    on_tpu = commands_in(dry_run(path, "tpu_vm", *ENOUGH["tpu_vm"], "--", *COMMAND))[-1][-1]
    words = shlex.split(on_tpu.partition("--command=")[2])
    assert words[words.index("train") : words.index(">>")] == COMMAND
    slurm = commands_in(dry_run(path, "slurm", *ENOUGH["slurm"], "--edlm=/v/bin/python -m x", "--", *COMMAND))[-1][-1]
    words = shlex.split(slurm.partition("--wrap=")[2])
    assert words[-7:] == ["/v/bin/python", "-m", "x", *COMMAND]


def test_the_jobset_is_yaml_and_says_what_was_asked_for(path):
    def jobset(*options):
        text = dry_run(path, "gke", *ENOUGH["gke"], *options, "--", *COMMAND)
        return yaml.safe_load(text.partition("<<YAML\n")[2].removesuffix("YAML\n"))

    plain, full = jobset(), jobset("--bucket=b", "--spot=yes", "--slices=2", "--topology=2x2x4")
    specs = [made["spec"]["replicatedJobs"][0]["template"]["spec"] for made in (plain, full)]
    pods = [spec["template"]["spec"] for spec in specs]
    assert pods[0]["containers"][0]["args"] == pods[1]["containers"][0]["args"] == COMMAND
    assert "volumes" not in pods[0] and pods[1]["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "b"
    assert [pod["nodeSelector"].get("cloud.google.com/gke-spot") for pod in pods] == [None, "true"]
    assert [spec["completions"] for spec in specs] == [4, 4] and full["spec"]["replicatedJobs"][0]["replicas"] == 2


def test_a_slice_that_was_lost_is_asked_for_anew(path):
    """describe: SUSPENDED, then gone, then ACTIVE."""
    states = path.parent / "states"
    states.write_text("SUSPENDED\nFAILED\n\nWAITING_FOR_RESOURCES\nACTIVE\n")
    gcloud = f"""#!/bin/bash
        echo "$*" >> {path.parent}/ran
        [[ $* != *describe* ]] || {{ mapfile -t all < {states}; echo "${{all[0]}}"
        printf '%s\\n' "${{all[@]:1}}" > {states}; }}"""
    (path / "gcloud").write_text(gcloud)
    done = launch(path, "tpu_vm", *ENOUGH["tpu_vm"], "--poll=1", "--", *COMMAND)
    assert done.returncode == 0, done.stderr
    verbs = [line.split()[3] for line in (path.parent / "ran").read_text().splitlines() if "queued-resources" in line]
    assert verbs == ["describe", "delete", "describe", "delete", "describe", "create", "describe", "describe"]


@pytest.mark.parametrize(
    "name, arguments, reason",
    [
        (
            "tpu_vm",
            ["--zone=z", "--accelerator=v4-8", "--", "train"],
            "--name is missing: give it, or export EDLM_NAME",
        ),
        ("tpu_vm", ["--name=q", "--zone=z", "--", "train"], "--accelerator is missing"),
        ("tpu_vm", ["logs", "--name=q"], "--zone is missing"),
        ("tpu_vm", [*ENOUGH["tpu_vm"], "--capacity=cheap", "--", "train"], "spot, reserved or on-demand, not 'cheap'"),
        ("tpu_vm", [*ENOUGH["tpu_vm"], "--bucket=gs://b", "--", "train"], "--bucket is a name without gs://"),
        ("tpu_vm", ENOUGH["tpu_vm"], "nothing to run"),
        ("slurm", ["--", "train"], "--name is missing"),
        ("slurm", ["--name=q", "--gpus=some", "--", "train"], "--gpus must be a positive whole number, not 'some'"),
        ("slurm", ["launch", "--name=q"], "unknown word 'launch': one of start, logs, status, stop, delete"),
        ("slurm", ["--name=q", "--nodse=2"], "unknown option --nodse"),
        ("slurm", ["--name"], "--name needs a value"),
        ("gke", [*ENOUGH["gke"][:3], "--", "train"], "--topology is missing"),
        ("gke", [*ENOUGH["gke"], "--topology=16", "--", "train"], "--topology must look like 4x4"),
        ("gke", [*ENOUGH["gke"], "--chips=3", "--", "train"], "16 chips, which hosts of --chips=3 do not divide"),
        ("gke", ENOUGH["gke"], "nothing to run"),
        ("local", [], "nothing to run"),
        ("local", ["--device=tpu", "--", "train"], "--device must be cpu or gpu, not 'tpu'"),
        ("local", ["--processes=0", "--", "train"], "--processes must be a positive whole number, not '0'"),
        ("local", ["train"], "unexpected word 'train': edlm's arguments follow --"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(name, arguments, reason, path):
    done = launch(path, name, *arguments)
    assert done.returncode == 2 and done.stdout == "" and not (path.parent / "ran").exists()
    assert len(done.stderr.splitlines()) == 1 and reason in done.stderr and done.stderr.startswith(f"{name}.sh: ")


def test_variables_stand_for_options(path):
    env = dict(EDLM_NAME="q", EDLM_ZONE="z", EDLM_ACCELERATOR="v4-8", EDLM_PROJECT="p")
    by_variables = dry_run(path, "tpu_vm", "--", *COMMAND, **env)
    options = ["--name=q", "--zone=z", "--accelerator=v4-8", "--project=p"]
    assert by_variables == dry_run(path, "tpu_vm", *options, "--", *COMMAND) != ""
    assert by_variables != dry_run(path, "tpu_vm", "--zone=elsewhere", "--", *COMMAND, **env)
