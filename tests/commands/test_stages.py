"""Stages: finished ones are not repeated, interrupted ones are, another config starts over."""

import json

import pytest

from edlm_jax.commands.stages import Stages

NAMES = ("first", "second")


def test_finished_stages_are_not_repeated(tmp_path, capsys):
    file, calls = tmp_path / "stages.json", []

    def work():
        calls.append(1)
        return {"value": len(calls)}

    assert Stages(file, "config", NAMES).run("first", work) == {"value": 1}
    again = Stages(file, "config", NAMES)
    assert again.run("first", work) == {"value": 1}
    assert again.run("second", work) == {"value": 2}
    assert "[1/2] first: done before" in capsys.readouterr().err
    assert set(again.seconds) == set(NAMES)
    assert Stages(file, "another config", NAMES).run("first", work) == {"value": 3}


def test_an_interrupted_stage_runs_again_and_keeps_its_seconds_if_it_resumes(tmp_path):
    file = tmp_path / "stages.json"

    def interrupt():
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            Stages(file, "config", NAMES).run("first", interrupt, resumes=True)
    record = Stages(file, "config", NAMES)
    interrupted = record.seconds["first"]
    assert record.run("first", lambda: "whole", resumes=True) == "whole"
    assert record.seconds["first"] > interrupted > 0
    assert record.run("first", interrupt) == "whole"


def test_a_stage_that_is_given_something_else_runs_again_with_those_behind_it(tmp_path):
    """Also when the process was killed in the middle of it: nothing half written counts as finished."""
    file = tmp_path / "stages.json"

    def run(given, first=lambda: 1):
        stages = Stages(file, "config", NAMES)
        return stages.run("first", first, given=given), stages.run("second", lambda: given)

    assert run({"size": 1}) == (1, {"size": 1}) == run({"size": 1}, first=None)
    assert run({"size": 2}) == (1, {"size": 2})
    seen = []
    run({"size": 1}, first=lambda: seen.append(json.loads(file.read_text())["stages"]))
    assert [(stage["done"], stage["given"]) for stage in seen[0].values()] == [(False, {"size": 1})]


def test_what_a_stage_left_half_done_is_cleared_only_where_something_else_is_given(tmp_path):
    cleared = []

    def run(given, work):
        stages = Stages(tmp_path / "stages.json", "config", NAMES)
        return stages.run("first", work, given=given, clear=lambda: cleared.append(given))

    for given, expected in ((1, [1]), (1, [1]), (2, [1, 2]), (2, [1, 2])):
        with pytest.raises(ZeroDivisionError):
            run(given, lambda: 1 / 0)
        assert cleared == expected
    assert run(2, lambda: "whole") == "whole" and cleared == [1, 2]


def test_a_refused_stage_leaves_no_directory(tmp_path):
    with pytest.raises(ZeroDivisionError):
        Stages(tmp_path / "workdir" / "stages.json", "config", NAMES).run("first", lambda: 1 / 0)
    assert list(tmp_path.iterdir()) == []
