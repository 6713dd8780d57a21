"""Sweeps: every point is measured as it would be alone, and drawn."""

import json
import shutil

import pytest

from edlm_jax.commands.main import main
from edlm_jax.decoding import Decoder
from edlm_jax.evaluation.compare import compare_accuracy, modes_at
from edlm_jax.evaluation.tasks import load_tasks
from edlm_jax.evaluation.tasks.task import Way
from edlm_jax.pretrained import Text, load_pretrained, load_tokenizer
from edlm_jax.reports.picture import plot_sweep


def test_every_point_of_a_sweep_is_measured(tiny_converted_dir, tiny_ar_dir, tmp_path, capsys):
    command = ["evaluate", f"--model={tiny_converted_dir}", f"--baseline={tiny_ar_dir}", "--dtype=float32"]
    command += ["--count=3", "--batch-size=2", "--timed-prompts=1", f"--out={tmp_path / 'out'}"]
    assert main([*command, "--sweep", "--thresholds=1,0", "--block-lengths=2,4", "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report == json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert (tmp_path / "out" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    points = [(entry["block_length"], entry["threshold"]) for entry in report["sweep"]]
    assert points == [(2, 1), (2, 0), (4, 1), (4, 0)]
    assert report["ar"]["tokens_per_forward"] == 1 and report["ar"]["tokens_per_second"] > 0
    assert captured.err.splitlines()[0].startswith("[1/6] evaluate: ar: ")

    model = load_pretrained(tiny_converted_dir, "float32")
    decoder, text = Decoder(model), Text.of(model.spec, load_tokenizer(tiny_converted_dir))
    tasks = load_tasks([dict(kind="tasks", split="test", size=3)], text.tokenizer)
    for entry, mode in zip(report["sweep"], modes_at(model.spec.conversion.layout, [1.0, 0.0], [2, 4]), strict=True):
        (alone,) = compare_accuracy([Way(decoder, mode)], tasks, text, 2)
        assert all(entry[name] == alone[name] for name in ("denoise_forwards", "new_tokens"))
        assert entry["tokens_per_second"] > 0
    bold = [entry["tokens_per_forward"] for entry in report["sweep"] if entry["threshold"] == 0]
    assert bold[0] > 1 and bold[1] > bold[0]


def test_a_model_of_causal_blocks_is_measured_as_it_decodes(tiny_converted_dir, tmp_path, capsys):
    model = shutil.copytree(tiny_converted_dir, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["edlm"] |= dict(pattern="causal_block", prefill="causal")
    (model / "config.json").write_text(json.dumps(config))
    command = ["evaluate", f"--model={model}", "--dtype=float32", "--count=3", "--timed-prompts=1", "--thresholds=0"]
    assert main([*command, "--markdown"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "mars, threshold 0" in line]
    assert float(row.split("|")[3]) > 3  # blocks of 4, of which all but an answer's last are taken at once


def test_the_figure_has_a_curve_for_each_block_length(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: drawn.append(figure))
    points = [(4, 1.0, 0.9, 1.0, 50.0), (4, 0.5, 0.7, 2.5, 90.0), (8, 1.0, 0.8, 1.0, 40.0), (8, 0.5, 0.6, 3.5, 99.0)]
    names = ("block_length", "threshold", "accuracy", "tokens_per_forward", "tokens_per_second")
    ar = dict(accuracy=0.95, tokens_per_forward=1.0, tokens_per_second=60.0)
    plot_sweep(dict(ar=ar, sweep=[dict(zip(names, point, strict=True)) for point in points]), tmp_path / "sweep.png")
    forwards, speeds = drawn[0].axes
    curves = {line.get_label(): line.get_xydata().tolist() for line in forwards.lines}
    assert curves["4"] == [[1.0, 0.9], [2.5, 0.7]] and curves["8"] == [[1.0, 0.8], [3.5, 0.6]]
    assert curves["AR"] == [[1.0, 0.95]]
    assert [[60.0, 0.95]] in [line.get_xydata().tolist() for line in speeds.lines]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--sweep", "--block-lengths=4,x"], "numbers separated"),
        (["--sweep", "--block-lengths=0"], "must be positive"),
        (["--sweep", "--block-lengths=513"], "longer than the model's 512"),
        (["--sweep", "--task=heldout"], "--task=tasks"),
        (["--sweep", "--out=setup.py"], "not a directory"),
        (["--block-lengths=4"], "is for --sweep"),
    ],
)
def test_what_no_sweep_can_be_is_refused(tiny_converted_dir, capsys, arguments, reason):
    assert main(["evaluate", f"--model={tiny_converted_dir}", *arguments]) == 2
    assert reason in capsys.readouterr().err


def test_an_ar_model_has_no_sweep(tiny_ar_dir, capsys):
    assert main(["evaluate", f"--model={tiny_ar_dir}", "--sweep"]) == 2
    assert "never converted" in capsys.readouterr().err
