"""The fewest micro-batches that fit: asked for few times, remembered in the work directory, the same as if written."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import pytest

from edlm_jax.attention import Tiles
from edlm_jax.parallel.mesh import Axes, make_mesh
from edlm_jax.training import fitting
from edlm_jax.training.initial import planned_spec
from edlm_jax.training.run import Run

NOTHING = dict(argument_size_in_bytes=0, temp_size_in_bytes=0)


@pytest.fixture
def open_run(config) -> Run:
    config.data.batch_size, config.optimizer.accumulation = 24, 0
    return Run.of(config)


def test_the_fewest_are_found_with_few_questions(open_run):
    mesh = make_mesh(Axes(data=2, fsdp=1, tensor=1, context=1), jax.devices()[:2])
    for least, expected in ((1, 1), (2, 2), (5, 6), (7, 12), (12, 12), (99, 12)):  # of 12 rows: 1 2 3 4 6 12
        asked = []
        assert fitting.fewest_micro_batches(open_run, mesh, lambda n: asked.append(n) or n >= least) == expected  # noqa: B023
        assert len(asked) <= 3
    written = fitting.with_micro_batches(open_run, 4)
    assert fitting.fewest_micro_batches(written, mesh, lambda count: pytest.fail("nobody asks")) == 4


def test_a_work_directory_remembers_what_fitted(open_run, tmp_path, monkeypatch):
    mesh, compiled = make_mesh(open_run.axes, jax.devices()[:1]), []

    def lower(run, spec, mesh):
        compiled.append(run.optimizer.accumulation)
        peak = SimpleNamespace(peak_memory_in_bytes=1 + 960 // run.optimizer.accumulation, **NOTHING)
        return SimpleNamespace(compile=lambda: SimpleNamespace(memory_analysis=lambda: peak))

    monkeypatch.setattr(fitting, "lower_step", lower)
    spec = planned_spec(open_run.start)
    assert fitting.fit(open_run, spec, mesh).optimizer.accumulation == 24 and not compiled  # nobody knows the memory
    monkeypatch.setattr(fitting, "memory_of", lambda device: 1000)
    fitted = fitting.fit(open_run, spec, mesh)
    assert fitted.optimizer.accumulation == 2 and 1 in compiled  # of 961 bytes 950 may be had
    assert dataclasses.replace(fitted, optimizer=open_run.optimizer) == open_run
    fitting.remember(fitted, mesh, tmp_path)
    compiled.clear()
    assert fitting.fit(open_run, spec, mesh, tmp_path) == fitted and not compiled
    assert list(json.loads((tmp_path / "micro_batches.json").read_text()).values()) == [2]
    for other in (dict(remat="full"), dict(start=dataclasses.replace(open_run.start, tiles=Tiles(8, 8)))):
        assert fitting.fit(dataclasses.replace(open_run, **other), spec, mesh, tmp_path) and compiled
        compiled.clear()


def test_the_peak_is_never_less_than_what_is_planned():
    sizes = dict(argument_size_in_bytes=3, temp_size_in_bytes=5)
    assert fitting.needed(SimpleNamespace(peak_memory_in_bytes=6, **sizes)) == 8  # a TPU's
    assert fitting.needed(SimpleNamespace(peak_memory_in_bytes=9, **sizes)) == 9
