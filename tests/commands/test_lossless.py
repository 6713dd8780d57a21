"""`edlm lossless`: ported once, every mode gives AR's text, and the report says so."""

import importlib.util
import json

import numpy as np
import pytest
from flax import nnx

from edlm_jax.commands import lossless_job
from edlm_jax.commands.config import recorded_configs
from edlm_jax.commands.main import main
from edlm_jax.data.questions import questions
from edlm_jax.pretrained import load_pretrained
from tests.commands.test_main import fail

TINY = ["--config.data.length=128", "--config.objective.noisy_length=64", "--config.lora.rank=2"]
TINY += ["--config.optimizer.warmup_steps=1", "--config.optimizer.decay_steps=1"]


@pytest.fixture(autouse=True)
def no_torch(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest))


def test_the_report_has_every_mode_with_ars_text(tiny_ar_dir, tmp_path, capsys):
    command = ["lossless", f"--model={tiny_ar_dir}", f"--workdir={tmp_path}", "--prompts=2", "--max-new-tokens=8"]
    command += ["--minutes=0"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "prompt" in printed.out and "2 of 2" in printed.out and "[2/2] speed" in printed.err
    report = json.loads((tmp_path / "report.json").read_text())
    assert [entry["same_text"] for entry in report["lossless"].values()] == [2] * 4
    assert "prompt lookup: drafts 3, lookup 2" in report["lossless"]
    assert report["lossless"]["AR"]["tokens_per_forward"] == 1.0 and report["seconds_to_first_token"] > 0
    assert (tmp_path / "report.png").stat().st_size and (tmp_path / "ar" / "model.safetensors").exists()
    assert main(command) == 0 and "[2/2] speed: done before" in capsys.readouterr().err


@pytest.fixture
def command(tiny_ar_dir, tmp_path, monkeypatch):
    """One that trains a drafter of three steps."""
    monkeypatch.setattr(lossless_job, "time_train_step", lambda run, steps: PACE)
    monkeypatch.setattr(lossless_job, "product_rate", lambda dtype: 4e9)
    where = ["lossless", f"--model={tiny_ar_dir}", f"--workdir={tmp_path}"]
    return [*where, "--prompts=1", "--max-new-tokens=6", "--minutes=0.1", *TINY]


def test_a_drafter_is_trained_beside_the_model(command, tmp_path, capsys):
    assert main(command) == 0
    report, asked = json.loads((tmp_path / "report.json").read_text()), questions("train", 2)
    made = [json.loads(line) for line in (tmp_path / "minutes_0.1" / "answers.jsonl").read_text().splitlines()]
    assert sorted(document["prompt"] for document in made) == sorted(asked) and report["drafter"]["answers"] == 2
    assert report["drafter"]["steps"] == 3  # of two seconds each
    assert report["drafter"]["row_tokens"] == 3 * 128
    assert report["drafter"]["share_of_product_rate"] == 0.25
    assert [entry["same_text"] for entry in report["lossless"].values()] == [1] * len(report["lossless"])
    assert sum("quadratic speculation" in name for name in report["lossless"]) == 5
    before, after = (load_pretrained(tmp_path / name, "float32") for name in ("ar", "model"))
    was, now = (dict(nnx.to_flat_state(nnx.state(model))) for model in (before, after))
    assert all(np.array_equal(was[path][...], now[path][...]) for path in was)
    assert after.layers.gated and np.any(after.layers.q_b_RNH[...]) and after.spec.conversion.adapted == "noisy"
    capsys.readouterr()
    assert main(["evaluate", f"--model={tmp_path / 'model'}", "--task=tasks", "--count=1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ar"]["tokens_per_forward"] == 1  # it is the AR model still


def test_a_changed_setting_runs_its_stages_again_and_no_others(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lossless_job, "_speed", lambda directory, args: {})
    monkeypatch.setattr(lossless_job, "plot_lossless", lambda report, path: None)
    record, recipe = tmp_path / "stages.json", recorded_configs()["smollm2_lossless"].read_text()
    (tmp_path / "same.py").write_text(recipe)
    (tmp_path / "other.py").write_text(recipe.replace("return c", "c.seed = 7\n    return c"))

    def run(*changes):
        """(names of the stages that ran, what is reported of the drafter)."""
        assert main([*command, *changes]) == 0
        said = capsys.readouterr().err.splitlines()
        ran = [line.split()[1] for line in said if line.startswith("[") and line.endswith(" ...")]
        return ran, json.loads((tmp_path / "report.json").read_text())["drafter"]

    names = ["port", *lossless_job.DRAFTER, "speed"]
    ran, first = run()
    assert ran == names and run() == ([], first)
    assert run(f"--config={tmp_path / 'same.py'}", "--config.seed=0") == ([], first)
    assert run("--prompts=2", "--repeats=3") == (["speed"], first)
    ran, second = run("--prompts=2", "--repeats=3", f"--config={tmp_path / 'other.py'}")
    assert ran == names[1:] and second["loss"] != first["loss"]
    stages = json.loads(record.read_text())
    stages["stages"]["drafter"]["done"] = False  # as if stopped between the last step and this record
    record.write_text(json.dumps(stages))
    assert run("--prompts=2", "--repeats=3", f"--config={tmp_path / 'other.py'}") == (["drafter"], second)


def test_answers_that_do_not_fit_are_refused_before_a_drafter_is_trained(command, tmp_path, capsys):
    assert main([*command, "--max-new-tokens=600"]) == 2
    assert "600 new ones exceed the model's cache of 512" in capsys.readouterr().err
    assert not (tmp_path / "minutes_0.1").exists()


PACE = dict(seconds_per_step=dict(median=2.0), tokens_per_second=64.0, model_flops_per_second=1e9)


@pytest.mark.parametrize("option", ["--prompts=0", "--max-new-tokens=0", "--repeats=-1", "--minutes=inf"])
def test_what_measures_nothing_or_never_ends_is_refused(tmp_path, capsys, option):
    reason = fail(capsys, "lossless", "--model=x", f"--workdir={tmp_path}", option)
    name, value = option.split("=")
    assert f"{name} must be positive, not {value}" in reason or f"{name} must lie in [0, 1e+06], not {value}" in reason


def test_no_question_of_the_held_out_set_is_in_the_other():
    test, train = questions("test", 10**6), questions("train", 10**6)
    assert not set(test) & set(train) and len(train) > 8 * len(test) > 0
    assert all("\n" not in question for question in test) and questions("test", 5) == test[:5]
