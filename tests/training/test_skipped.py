"""A run over a corpus with documents of no use: they are said, counted and left out, or too many."""

import json

import pytest

from edlm_jax.data import packing, pipeline
from edlm_jax.errors import InputError
from edlm_jax.training.checkpoint import latest_step
from edlm_jax.training.run import Run
from edlm_jax.training.train import train
from tests.training.test_train import assert_same, params


def test_a_run_says_and_counts_what_it_leaves_out(config, corpus, tmp_path, capsys, caplog):
    lines = (corpus / "train.jsonl").read_text().splitlines()
    path = tmp_path / "odd.jsonl"
    path.write_text("\n".join([*lines[:50], '{"prompt": "w1", "response": null}', *lines[50:], '{"prompt": ', ""]))
    config.data.sources = (dict(kind="jsonl", path=str(path)),)
    config.steps, config.data.max_skipped = 2, 0.001
    with pytest.raises(InputError, match=r"2 of 202 documents of .*odd.jsonl cannot be used.*odd.jsonl:51: response"):
        train(Run.of(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config.data.max_skipped = 0.01
    assert train(Run.of(config), tmp_path / "run")["documents_skipped"] == 2
    said = capsys.readouterr().err
    assert any("odd.jsonl" in line and "202 documents" in line and "2 skipped" in line for line in said.splitlines())
    assert all(any(f"odd.jsonl:{number}: " in message for message in caplog.messages) for number in (51, 202))
    config.steps, config.data.max_skipped = 3, 0.5  # how many may be of no use is no other run
    assert train(Run.of(config), tmp_path / "run")["completed"]
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["documents_skipped"] for line in metrics if "loss" in line] == [2, 2, 2]


def test_a_run_that_meets_too_many_keeps_what_it_learned(config, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "TOKENS", 100)  # of a large corpus the beginning alone is looked at
    monkeypatch.setattr(packing, "WINDOW_TOKENS", 0)
    lines = (corpus / "train.jsonl").read_text().splitlines()
    (tmp_path / "odd.jsonl").write_text("\n".join([*lines, *lines, lines[0], "odd", *lines, *lines]))
    config.data.update(sources=(dict(kind="jsonl", path=str(tmp_path / "odd.jsonl")),), shuffle=False, shards=2)
    config.steps, config.checkpoint.every = 40, 0
    ways = [tmp_path / "ended", tmp_path / "whole"]
    config.data.max_skipped = 0.0
    with pytest.raises(InputError, match="1 of 802 documents of .*odd.jsonl cannot be used"):
        train(Run.of(config), ways[0])
    assert 5 < latest_step(ways[0]) < 35
    config.data.max_skipped = 0.5
    for way in ways:
        assert train(Run.of(config), way)["completed"]
    assert_same(*map(params, ways))


def test_a_run_of_before_the_limit_was_goes_on(config, tmp_path):
    config.steps = 1
    train(Run.of(config), tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    del written["data"]["max_skipped"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    config.steps = 2
    assert train(Run.of(config), tmp_path)["step"] == 2
