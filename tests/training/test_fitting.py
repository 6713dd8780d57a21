"""The fewest micro-batches that fit: asked for few times, remembered in the work directory, the same as if written."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import pytest

from edlm_jax.attention import Tiles
from edlm_jax.models.transformer import REMAT_POLICIES
from edlm_jax.parallel.mesh import Axes, make_mesh
from edlm_jax.training import fitting
from edlm_jax.training.fitting import Room, find_room, fit, is_open, needed, remember
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
        found = find_room(open_run, mesh, lambda room: asked.append(room) or room.micro_batches >= least)  # noqa: B023
        assert found == Room(expected, open_run.remat) and len(asked) <= 3
    assert find_room(Room(4, "dots").of(open_run), mesh, lambda room: pytest.fail("nobody asks")) == Room(4, "dots")


@pytest.mark.parametrize(
    ("kept", "expected"), [(0, "full"), (1, "save_attention"), (2, "dots"), (3, "none"), (-1, "full")]
)
def test_what_room_is_left_keeps_results(open_run, kept, expected):
    mesh, keeps = make_mesh(Axes(data=1, fsdp=1, tensor=1, context=1), jax.devices()[:1]), list(REMAT_POLICIES)[::-1]
    fits = lambda room: room.micro_batches >= 3 and keeps.index(room.remat) <= kept  # noqa: E731
    found = find_room(dataclasses.replace(open_run, remat="auto"), mesh, fits)
    assert found == Room(3 if kept >= 0 else 24, expected)


def test_a_work_directory_remembers_what_fitted(open_run, tmp_path, monkeypatch):
    mesh, compiled = make_mesh(open_run.axes, jax.devices()[:1]), []

    def lower(run, spec, mesh):
        compiled.append(run.optimizer.accumulation)
        peak = 1 + 960 // run.optimizer.accumulation + 300 * (run.remat == "none")
        memory = SimpleNamespace(peak_memory_in_bytes=peak, **NOTHING)
        return SimpleNamespace(compile=lambda: SimpleNamespace(memory_analysis=lambda: memory))

    monkeypatch.setattr(fitting, "lower_step", lower)
    open_run, spec = dataclasses.replace(open_run, remat="auto"), planned_spec(open_run.start)
    assert fit(open_run, spec, mesh) == Room(24, "full").of(open_run) and not compiled  # nobody knows the memory
    monkeypatch.setattr(fitting, "memory_of", lambda device: 1000)
    fitted = fit(open_run, spec, mesh)
    assert fitted == Room(2, "none").of(open_run) and 1 in compiled  # of 961 bytes 950 may be had; of 781, too
    assert not is_open(fitted) and fit(fitted, spec, mesh) == fitted
    remember(fitted, mesh, tmp_path)
    compiled.clear()
    assert fit(open_run, spec, mesh, tmp_path) == fitted and not compiled
    assert list(json.loads((tmp_path / "memory.json").read_text()).values()) == [[2, "none"]]
    tiles = dataclasses.replace(open_run.start, tiles=Tiles(8, 8))
    for other in (dict(remat="full"), dict(start=tiles)):
        found = fit(dataclasses.replace(open_run, **other), spec, mesh, tmp_path)
        assert found.optimizer.accumulation == 2 and compiled
        compiled.clear()


def test_the_peak_counts_temporaries_unless_it_is_a_tpus():
    sizes = dict(argument_size_in_bytes=3, temp_size_in_bytes=5)
    low, high = (SimpleNamespace(peak_memory_in_bytes=peak, **sizes) for peak in (6, 9))
    assert [needed(low, platform) for platform in ("cpu", "gpu", "tpu")] == [8, 8, 6]
    assert needed(high, "cpu") == 9
