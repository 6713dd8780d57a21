"""`edlm lossless`: ported once, every mode gives AR's text, and the report says so."""

import importlib.util
import json

import pytest

from edlm_jax.commands.main import main
from edlm_jax.data.questions import questions
from tests.commands.test_main import fail


def test_the_report_has_every_mode_with_ars_text(tiny_ar_dir, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest))
    command = ["lossless", f"--model={tiny_ar_dir}", f"--workdir={tmp_path}", "--prompts=2", "--max-new-tokens=8"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "prompt lookup" in printed.out and "2 of 2" in printed.out and "[2/2] speed" in printed.err
    report = json.loads((tmp_path / "report.json").read_text())
    assert [entry["same_text"] for entry in report["lossless"].values()] == [2] * 4
    assert report["lossless"]["AR"]["tokens_per_forward"] == 1.0 and report["seconds_to_first_token"] > 0
    assert (tmp_path / "report.png").stat().st_size and (tmp_path / "model" / "model.safetensors").exists()
    assert main(command) == 0 and "[2/2] speed: done before" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--prompts=0", "--max-new-tokens=0", "--repeats=-1"])
def test_what_measures_nothing_is_refused(tmp_path, capsys, option):
    reason = fail(capsys, "lossless", "--model=x", f"--workdir={tmp_path}", option)
    assert f"{option.partition('=')[0]} must be positive" in reason


def test_no_question_of_the_held_out_set_is_in_the_other():
    test, train = questions("test", 10**6), questions("train", 10**6)
    assert not set(test) & set(train) and len(train) > 8 * len(test) > 0
    assert all("\n" not in question for question in test) and questions("test", 5) == test[:5]
