"""Whole runs of a tiny model on eight devices: resumed, stopped, moved to other meshes, refused."""

import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from edlm_jax.errors import InputError
from edlm_jax.evaluation.heldout import heldout_loss
from edlm_jax.pretrained import load, load_pretrained
from edlm_jax.training.checkpoint import latest_step, load_trained
from edlm_jax.training.heldout import heldout_metrics
from edlm_jax.training.initial import read_spec
from edlm_jax.training.metrics import DRIFT_GROUPS
from edlm_jax.training.run import Run
from edlm_jax.training.step import make_eval_step
from edlm_jax.training.train import Trainer, train
from tests.training.conftest import make_config
from tests.training.tiny import HF_CONFIG, MASK_ID


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def evaluated(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "eval_loss" in line]


def params(workdir, step=None):
    return nnx.to_pure_dict(nnx.state(load_trained(workdir, step=step)))


def assert_drift(summary, checkpoint, workdir):
    before, after = load_pretrained(checkpoint, "float32").layers, load_trained(workdir).layers
    for group, names in DRIFT_GROUPS.items():
        old, new = (np.concatenate([np.float64(getattr(m, name)).ravel() for name in names]) for m in (before, after))
        assert summary[f"drift_{group}"] == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old), rel=1e-5)


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True))


def raise_sigterm_in_step(monkeypatch, step):
    original = Trainer._step

    def wrapped(run, at, state, batch):
        if at == step:
            signal.raise_signal(signal.SIGTERM)
        return original(run, at, state, batch)

    monkeypatch.setattr(Trainer, "_step", wrapped)


@pytest.fixture(scope="module")
def finished(corpus, checkpoint, tmp_path_factory):
    """(work directory, summary) of a run of 6 steps that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, train(Run.of(make_config(corpus, checkpoint)), workdir)


def test_a_finished_run_left_everything(finished, checkpoint):
    workdir, summary = finished
    assert summary["step"] == 6 and summary["completed"]
    assert list(losses(workdir)) == [1, 2, 3, 4, 5, 6] and losses(workdir)[6] == summary["loss"]
    names = {"eval_loss", "eval_loss_at_noise_0.5", "masked_fraction", "grad_norm", "tokens_per_second", "drift_ffn"}
    assert names <= set(summary) and all(np.isfinite(summary[name]) for name in names)
    assert_drift(summary, checkpoint, workdir)
    for part in ("", "eval_"):
        assert summary[f"{part}loss"] == summary[f"{part}diffusion_objective"]
        # Nats per token: about half, as masked tokens are.
        assert 0.3 < summary[f"{part}diffusion_loss"] / summary[f"{part}diffusion_objective"] < 0.7
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["3", "6"]
    conversion = json.loads((workdir / "model.json").read_text())["config"]["edlm"]
    assert conversion["mask_token_id"] == MASK_ID and conversion["block_length"] == 4
    assert list((workdir / "tensorboard").iterdir())


@pytest.mark.parametrize("rank", [0, 4])
def test_an_evaluation_holds_one_parameter_beside_the_model(rank, config, tmp_path, monkeypatch):
    config.lora.rank, config.steps = rank, 1
    live_bytes = lambda: sum(x.nbytes for x in jax.live_arrays() if not x.is_deleted())  # noqa: E731
    read, evaluate, beside = load._read, Trainer._evaluate, []

    def evaluated(trainer, step, params):
        gc.collect()
        before = live_bytes()

        def counted(*args):
            array = read(*args)
            beside.append(live_bytes() - before)
            return array

        monkeypatch.setattr(load, "_read", counted)
        return evaluate(trainer, step, params)

    monkeypatch.setattr(Trainer, "_evaluate", evaluated)
    assert train(Run.of(config), tmp_path)["drift_ffn"] > 0
    largest = 4 * HF_CONFIG["num_hidden_layers"] * HF_CONFIG["hidden_size"] * HF_CONFIG["intermediate_size"]
    assert max(beside, default=0) <= largest, (max(beside), largest)
    assert bool(beside) == (rank == 0)  # adapters stand beside the matrices that they began with


def test_the_bound_of_a_run_is_the_held_out_loss_of_its_model(finished, config):
    run = Run.of(config)
    _, tokenizer = read_spec(run.start)
    loss = heldout_loss(load_trained(finished[0]), run.data, tokenizer, run.objective.layout)
    assert finished[1]["eval_bound"] == pytest.approx(loss, rel=1e-5)


def test_interrupted_by_sigterm_equals_uninterrupted_bitwise(finished, config, tmp_path, monkeypatch):
    raise_sigterm_in_step(monkeypatch, 3)  # not where a checkpoint is due
    before = signal.getsignal(signal.SIGTERM)
    summary = train(Run.of(config), tmp_path)
    assert summary["step"] == 4 and not summary["completed"]
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.undo()
    config.log_every = 2  # another cadence is no other run
    with (tmp_path / "metrics.jsonl").open("a") as file:  # what a killed process may leave: later steps, half a line
        file.write('{"step": 5, "loss": 0.0}\n{"step": 6, "lo')
    assert train(Run.of(config), tmp_path)["completed"]
    assert_same(params(tmp_path), params(finished[0]))
    ours, theirs = losses(tmp_path), losses(finished[0])
    assert list(ours) == [1, 2, 3, 4, 6]
    assert [ours[step] for step in (1, 2, 3, 4)] == [theirs[step] for step in (1, 2, 3, 4)]


def raise_sigterm_in_evaluation(monkeypatch):
    """While the first held-out batch is measured."""

    def make(*args):
        eval_step = make_eval_step(*args)
        return lambda *args: (signal.raise_signal(signal.SIGTERM), eval_step(*args))[1]

    monkeypatch.setattr("edlm_jax.training.train.make_eval_step", make)


@pytest.mark.parametrize("every, step", [(3, 3), (0, 6)])
def test_sigterm_gives_up_an_evaluation(every, step, finished, config, tmp_path, monkeypatch):
    raise_sigterm_in_evaluation(monkeypatch)
    config.eval_every = every
    summary = train(Run.of(config), tmp_path)
    assert summary["step"] == step == latest_step(tmp_path) and not summary["completed"]
    assert "eval_loss" not in summary
    monkeypatch.undo()
    summary = train(Run.of(config), tmp_path)
    assert summary["completed"] and summary["eval_loss"] == finished[1]["eval_loss"]
    assert losses(tmp_path) == losses(finished[0])
    assert evaluated(tmp_path) == ([3, 6] if every else [6])  # what was given up is made up for


def test_a_finished_run_is_not_evaluated_again(finished, config, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    summary = train(Run.of(config), tmp_path / "run")
    assert summary | dict(seconds=0) == finished[1] | dict(seconds=0)
    metrics = [(workdir / "metrics.jsonl").read_text() for workdir in (finished[0], tmp_path / "run")]
    assert metrics[0] == metrics[1]


def test_an_evaluation_that_fails_loses_no_step(finished, config, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("the disk of the checkpoint to start from is gone")

    monkeypatch.setattr(Trainer, "_drift", fail)
    config.checkpoint.every = 0
    with pytest.raises(OSError, match="is gone"):
        train(Run.of(config), tmp_path)
    assert latest_step(tmp_path) == 6 and losses(tmp_path) == losses(finished[0])
    monkeypatch.undo()
    assert train(Run.of(config), tmp_path)["eval_loss"] == finished[1]["eval_loss"] and evaluated(tmp_path) == [6]


@pytest.mark.parametrize("full", [{3}, {3, 6}])
def test_a_disk_that_was_full_costs_no_newer_checkpoint(full, finished, config, tmp_path, monkeypatch):
    save = Trainer._save

    def limited(trainer, step, state):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000 if step in full else limits[0], limits[1]))
        try:
            save(trainer, step, state)
            while trainer.checkpoints._manager.is_saving_in_progress():
                time.sleep(0.05)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(Trainer, "_save", limited)
    if 6 in full:
        with pytest.raises(ValueError, match="File too large"):
            train(Run.of(config), tmp_path)
        assert latest_step(tmp_path) is None
    else:
        assert train(Run.of(config), tmp_path)["completed"]
        assert_same(params(tmp_path), params(finished[0]))


def test_an_evaluation_takes_no_more_rows_at_a_time_than_a_step(config, tmp_path, monkeypatch):
    config.steps, config.optimizer.learning_rate, config.data.batch_size = 1, 1e-12, 64  # 8 rows a device
    scalars, taken = [], []

    def measure(eval_step, bound_step, objective, params, batches):
        batch, *_ = batches
        for step in (eval_step, bound_step):
            program = jax.jit(step).lower(params, batch, np.int32(0)).compile()
            taken.append(program.memory_analysis().temp_size_in_bytes)
        return heldout_metrics(eval_step, bound_step, objective, params, [batch])

    monkeypatch.setattr("edlm_jax.training.train.heldout_metrics", measure)
    for accumulation in (1, 8):
        config.optimizer.accumulation = accumulation
        scalars.append(train(Run.of(config), tmp_path / str(accumulation)))
    assert all(few < whole / 3 for whole, few in zip(taken[:2], taken[2:], strict=True)), taken
    for name in ("eval_loss", "eval_bound", "eval_loss_at_noise_0.5"):
        assert scalars[1][name] == pytest.approx(scalars[0][name], rel=1e-5)


def test_slow_steps_are_not_queued_behind_each_other(finished, config, tmp_path, monkeypatch):
    original = Trainer._step
    for limit, expected in [(-1.0, []), (1e9, [2, 4, 5])]:  # what the first takes is not known; 3 begins after a save
        queued = []  # steps that are begun while another is under way

        def wrapped(run, step, *args, queued=queued):
            queued += [step] if run.pending else []
            return original(run, step, *args)

        monkeypatch.setattr(Trainer, "_step", wrapped)
        monkeypatch.setattr("edlm_jax.training.train._QUEUED", limit)
        train(Run.of(config), tmp_path / str(limit))
        assert queued == expected and losses(tmp_path / str(limit)) == losses(finished[0])


def test_a_corpus_that_has_grown_is_not_continued(config, corpus, tmp_path):
    lines = (corpus / "train.jsonl").read_text()
    (tmp_path / "train.jsonl").write_text(lines)
    config.data.sources = (dict(kind="jsonl", path=str(tmp_path / "train.jsonl")), dict(kind="tasks", weight=0.1))
    config.steps = 1
    train(Run.of(config), tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    config.steps = 2
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write("\n" + lines)
    with pytest.raises(InputError, match=r"had 200 documents when .* and has 400 now: .* Put it back") as error:
        train(Run.of(config), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    (tmp_path / "run" / "checkpoints" / "1" / "data" / "documents.json").unlink()  # as older versions wrote it
    assert train(Run.of(config), tmp_path / "run")["completed"]


def test_resumes_on_another_mesh(finished, config, tmp_path):
    finished_mesh = config.mesh.to_dict()
    config.mesh.update(data=1, fsdp=2, tensor=2, context=2)
    config.steps = 3
    train(Run.of(config), tmp_path)
    config.mesh.update(finished_mesh)
    config.steps = 6
    train(Run.of(config), tmp_path)
    ours, theirs = losses(tmp_path), losses(finished[0])
    assert list(ours) == list(theirs)
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-4)
    # Adam turns rounding of tiny gradients into steps of its own, hence the tolerance of a few learning rates.
    for a, b in zip(jax.tree.leaves(params(tmp_path)), jax.tree.leaves(params(finished[0])), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)


RUN_ON_ONE_DEVICE = """
import sys, pathlib, jax
jax.config.update("jax_num_cpu_devices", 1)
from edlm_jax.training.train import train
from edlm_jax.training.run import Run
from tests.training.conftest import make_config
config = make_config(*map(pathlib.Path, sys.argv[1:3]))
config.steps = 10**6
config.checkpoint.update(every=1, keep_last=10**6)  # nothing is deleted while the test looks
sys.exit(7 if train(Run.of(config), sys.argv[3])["completed"] else 0)
"""


def signal_after_a_checkpoint(process, workdir, number):
    """Sends the signal once the process has written a checkpoint that was not there before; returns the exit code."""
    before = latest_step(workdir)
    while latest_step(workdir) == before and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    return process.wait()


def test_killed_then_stopped_then_moved_to_more_devices(finished, corpus, checkpoint, tmp_path):
    workdir, root = tmp_path / "run", Path(__file__).parents[2]
    arguments = [str(corpus), str(checkpoint), str(workdir)]
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 0)):
        command = [sys.executable, "-c", RUN_ON_ONE_DEVICE, *arguments]
        process = subprocess.Popen(command, cwd=root, env=os.environ)
        assert signal_after_a_checkpoint(process, workdir, number) == code
    stopped = latest_step(workdir)
    assert stopped == max(losses(workdir))
    config = make_config(corpus, checkpoint)
    config.steps = max(stopped + 1, 6)
    assert train(Run.of(config), workdir)["completed"]
    ours, theirs = losses(workdir), losses(finished[0])
    np.testing.assert_allclose([ours[step] for step in theirs], list(theirs.values()), rtol=1e-4)


def test_nan_stops_and_saves_the_batch(config, checkpoint, tmp_path):
    poisoned = tmp_path / "ar"
    poisoned.mkdir()
    for file in checkpoint.iterdir():
        (poisoned / file.name).write_bytes(file.read_bytes())
    tensors = load_file(poisoned / "model.safetensors")
    tensors["model.norm.weight"] = np.full_like(tensors["model.norm.weight"], np.nan)
    save_file(tensors, poisoned / "model.safetensors", metadata={"format": "pt"})
    config.init.path = str(poisoned)
    with pytest.raises(FloatingPointError, match="nan_batch.npz") as error:
        train(Run.of(config), tmp_path / "run")
    assert "\n" not in str(error.value)
    saved = np.load(tmp_path / "run" / "nan_batch.npz")
    assert saved["step"] == 0 and saved["tokens"].shape == (8, 32) and saved["segment_ids"].max() > 1
    assert not list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


def test_another_config_in_the_work_directory_is_refused(finished, config):
    config.optimizer.eps = 1e-6
    config.seed = 3
    with pytest.raises(InputError, match=r"another config \(optimizer.eps, seed differ\)"):
        train(Run.of(config), finished[0])


def test_a_run_without_a_checkpoint_leaves_its_directory_to_another(config, tmp_path, monkeypatch):
    monkeypatch.setattr("edlm_jax.training.train.Checkpoints", None)  # dies after its config is written
    with pytest.raises(TypeError):
        train(Run.of(config), tmp_path / "run")
    monkeypatch.undo()
    config.seed = 3
    config.steps = 1
    assert train(Run.of(config), tmp_path / "run")["completed"]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 3


def test_what_is_refused_writes_nothing(config, checkpoint, tmp_path):
    for change, reason in [
        (lambda c: c.data.update(batch_size=6), "not divisible by data x fsdp"),
        (lambda c: c.mesh.update(fsdp=3), "devices"),
        (lambda c: c.data.update(sources=()), "no data"),
        (lambda c: c.init.update(path=str(tmp_path / "nowhere")), "nowhere"),
        (lambda c: c.init.update(mask_token_id=400), "mask_token_id 400"),
    ]:
        c = config.copy_and_resolve_references()
        change(c)
        with pytest.raises(InputError, match=reason):
            train(Run.of(c), tmp_path / "run")
        assert not (tmp_path / "run").exists()
    (tmp_path / "foreign" / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match="no config.json"):
        train(Run.of(config), tmp_path / "foreign")
    with pytest.raises(InputError, match="not the work directory"):
        load_trained(checkpoint)
