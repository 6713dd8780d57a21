"""Runs the cells of a study: train, measure, keep the result; what is finished is not repeated."""

import dataclasses
import itertools
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax import monitoring

from edlm_jax.decoding import Decoder
from edlm_jax.decoding.modes import Mode, default_mode, make_mode, options_of
from edlm_jax.errors import InputError, StoppedError
from edlm_jax.evaluation.compare import AR, Origin, compare_accuracy
from edlm_jax.evaluation.tasks.task import Way
from edlm_jax.files import read_json
from edlm_jax.reports.report import describe_machine, write_report
from edlm_jax.studies.cells import Cell, Plan
from edlm_jax.studies.measures import measure_drift, measure_model, measure_training
from edlm_jax.studies.results import Results, summarise
from edlm_jax.training.checkpoint import load_trained
from edlm_jax.training.run import Run
from edlm_jax.training.train import train

_MEASURED = ("accuracy", "tokens_per_forward", "forwards_by_tokens")


class Study:
    """The cells of a study in a work directory: cells/NAME/ holds a training run and, once measured, cell.json.

    Cells that differ in seed, learning rate or half-life alone run the same programs (training/step.py): compiled/
    keeps them from cell to cell, from run to run, and for other machines of the same kind that share the directory.
    """

    def __init__(self, plan: Plan, workdir: Path):
        self.plan, self.base, self.measures, self.cells = plan, plan.base, plan.measures, plan.cells
        self.workdir = workdir
        modes = [make_mode(name) for name in ("ar", *self.measures.eval_modes)]
        self.origin = Origin(plan.base, modes)

    def keep_programs(self) -> None:
        """Begins to keep compiled programs, unless the process keeps them elsewhere. Comes before the first of them."""
        if jax.config.jax_compilation_cache_dir is None:
            jax.config.update("jax_compilation_cache_dir", str((self.workdir / "compiled").absolute()))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

    def run(self, wanted: Iterable[int]) -> Iterator[tuple[Cell, dict[str, Any] | None]]:
        """Finishes these cells; yields each with its result, None if it was finished before."""
        for index in wanted:
            cell, result = self.cells[index], None
            if self.finished(index) is None:
                result = self._run_cell(cell)
                write_report(result, self._directory(cell) / "cell.json")
            yield cell, result

    def finished(self, index: int) -> dict[str, Any] | None:
        """The result of a cell that was measured, here or on another machine."""
        cell = self.cells[index]
        path = self._directory(cell) / "cell.json"
        if not path.exists():
            return None
        result = read_json(path)
        if result["config"] != self._measured_config(cell.run):
            raise InputError(f"{path} was made under another config; choose another --workdir or remove that directory")
        return result

    def baseline(self) -> dict[str, Any]:
        """The model that all cells start from, on the same tasks, AR or as it was converted; measured once."""
        path, config = self.workdir / "ar.json", self._measured_config(self.base)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            ar = self.origin.ar
            measured = measure_model(self.measures, self.base, ar, self.origin.text.tokenizer) | {"config": config}
            measured |= {"name": "converted before"} if ar.spec.conversion else {}
            write_report(self._score(Way(Decoder(ar), default_mode(ar.spec), ar)) | measured, path)
        result = read_json(path)
        if result.pop("config", None) != config:
            raise InputError(f"{path} was made under another config; choose another --workdir or remove that file")
        return result

    def results(self, name: str, doc: str, baseline: dict[str, Any]) -> Results:
        """Of all cells that are finished so far; `doc` is that of the study's file."""
        finished = [result for index in range(len(self.cells)) if (result := self.finished(index)) is not None]
        arms = dict.fromkeys(cell["arm"] for cell in finished)
        return {
            "study": name,
            "doc": doc,
            "x": self.plan.x,
            "quick": self.plan.quick,
            "finished": len(finished),
            "cells_in_all": len(self.cells),
            "ar": baseline,
            "arms": [summarise(arm, [cell for cell in finished if cell["arm"] == arm]) for arm in arms],
            "cells": [{key: value for key, value in cell.items() if key != "config"} for cell in finished],
            "config": _plain(self.base),
            **describe_machine(),
        }

    def _run_cell(self, cell: Cell) -> dict[str, Any]:
        directory, began = self._directory(cell), time.perf_counter()
        with Compilations() as compilations:
            summary = train(cell.run, directory)
            if not summary["completed"]:
                raise StoppedError(f"stopped in {cell.name} at step {summary['step']}; the same command continues")
            training_compiled = compilations.compiled
            measured = [self._measure(cell, directory, step) for step in self.measures.eval_steps or (None,)]
            cost = measure_training(self.measures, cell.run)
        return {
            "arm": cell.arm,
            "seed": cell.seed,
            "changes": {name: _finite(value) for name, value in cell.changes.items()},
            "points": [point for points, _ in measured for point in points],
            "measures": [measures | cost for _, measures in measured],
            "training": {name: value for name, value in summary.items() if name in ("step", "loss", "eval_loss")},
            "seconds": time.perf_counter() - began,
            "compiled": {"training": training_compiled, "all": compilations.compiled, "reused": compilations.reused},
            "config": self._measured_config(cell.run),
        }

    def _measure(self, cell: Cell, directory: Path, step: int | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """(every way of decoding one checkpoint, what else it is measured by).

        Step and block length are None where each cell has its own.
        """
        model = load_trained(directory, step=step, dtype=cell.run.start.dtype)
        way = Way(Decoder(model), AR, model)
        points = [
            {
                "step": step,
                "mode": mode.name,
                "block_length": length if self.measures.eval_block_lengths else None,
                "threshold": getattr(mode, "threshold", None),
                **self._score(way._replace(mode=mode)),
            }
            for mode, length in self._modes(cell)
        ]
        measures = measure_model(self.measures, cell.run, model, self.origin.text.tokenizer)
        before = Origin(cell.run, []).ar  # an arm may begin with a model of its own
        return points, {"step": step} | measure_drift(before, model) | measures

    def _modes(self, cell: Cell) -> list[tuple[Mode, int]]:
        """Every mode, in blocks of every length if it has blocks, at every threshold if it has one."""
        lengths = self.measures.eval_block_lengths or (cell.run.data.block_length,)
        modes = []
        for name, length in itertools.product(self.measures.eval_modes, lengths):
            own = options_of(name)
            blocks = {"block_length": length} if "block_length" in own else {}
            thresholds = cell.run.evaluation.thresholds if "threshold" in own else (None,)
            for threshold in thresholds:
                chosen = {} if threshold is None else {"threshold": threshold}
                modes.append((make_mode(name, **blocks, **chosen), length))
        return modes

    def _score(self, way: Way) -> dict[str, float]:
        (score,) = compare_accuracy([way], self.origin.tasks[0], self.origin.text, self.base.evaluation.batch_size)
        return {name: score[name] for name in _MEASURED}

    def _directory(self, cell: Cell) -> Path:
        return self.workdir / "cells" / cell.name

    def _measured_config(self, run: Run) -> dict[str, Any]:
        """As JSON gives it back."""
        return json.loads(json.dumps(dict(training=_plain(run)) | dataclasses.asdict(self.measures)))


class Compilations:
    """Counts, while it is open, the programs that XLA compiled and those that the persistent cache had."""

    def __init__(self):
        self._prepared, self.reused = 0, 0

    @property
    def compiled(self) -> int:
        """Programs that had to be compiled so far."""
        return self._prepared - self.reused

    def __enter__(self) -> "Compilations":
        monitoring.register_event_duration_secs_listener(self._hear_prepared)
        monitoring.register_event_listener(self._hear_reused)
        return self

    def __exit__(self, *exception):
        monitoring.unregister_event_duration_listener(self._hear_prepared)
        monitoring.unregister_event_listener(self._hear_reused)

    def _hear_prepared(self, event: str, *_, **__) -> None:
        self._prepared += event == "/jax/core/compile/backend_compile_duration"

    def _hear_reused(self, event: str, **_) -> None:
        self.reused += event == "/jax/compilation_cache/cache_hits"


def _plain(run: Run) -> dict[str, Any]:
    """Its config as JSON, infinities as text."""
    return json.loads(run.config, parse_constant=str)


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and abs(value) == float("inf") else value
