"""Runs the cells of a study: train, measure, keep the result; what is finished is not repeated."""

import contextlib
import dataclasses
import itertools
import json
import math
import time
from collections import Counter
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
_INFINITE = math.inf, -math.inf  # which JSON has not
_PREPARED, _REUSED = "/jax/core/compile/backend_compile_duration", "/jax/compilation_cache/cache_hits"


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
        path = self._directory(self.cells[index]) / "cell.json"
        return self._read(path, self.cells[index].run, "directory") if path.exists() else None

    def baseline(self) -> dict[str, Any]:
        """The model that all cells start from, on the same tasks, AR or as it was converted; measured once."""
        path = self.workdir / "ar.json"
        if not path.exists():
            self.workdir.mkdir(parents=True, exist_ok=True)
            ar = self.origin.ar
            measured = measure_model(self.measures, self.base, ar, self.origin.text.tokenizer)
            measured |= {"name": "converted before"} if ar.spec.conversion else {}
            score = self._score(Way(Decoder(ar), default_mode(ar.spec), ar))
            write_report(score | measured | {"config": self._measured_config(self.base)}, path)
        result = self._read(path, self.base, "file")
        return {name: value for name, value in result.items() if name != "config"}

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
        with _hear_compilations() as heard:
            summary = train(cell.run, directory)
            if not summary["completed"]:
                raise StoppedError(f"stopped in {cell.name} at step {summary['step']}; the same command continues")
            training_compiled = heard[_PREPARED] - heard[_REUSED]
            measured = [self._measure(cell, directory, step) for step in self.measures.eval_steps or (None,)]
            cost = measure_training(self.measures, cell.run)
        compiled = dict(training=training_compiled, all=heard[_PREPARED] - heard[_REUSED], reused=heard[_REUSED])
        return {
            "arm": cell.arm,
            "seed": cell.seed,
            "changes": {name: str(value) if value in _INFINITE else value for name, value in cell.changes.items()},
            "points": [point for points, _ in measured for point in points],
            "measures": [measures | cost for _, measures in measured],
            "training": {name: value for name, value in summary.items() if name in ("step", "loss", "eval_loss")},
            "seconds": time.perf_counter() - began,
            "compiled": compiled,
            "config": self._measured_config(cell.run),
        }

    def _measure(self, cell: Cell, directory: Path, step: int | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """(ways of decoding one checkpoint, what else it is measured by); a step or length of None: each cell's own."""
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
        thresholds, modes = cell.run.evaluation.thresholds, []
        for name, length, threshold in itertools.product(self.measures.eval_modes, lengths, thresholds):
            options, own = dict(block_length=length, threshold=threshold), options_of(name)
            modes.append((make_mode(name, **{option: options[option] for option in options if option in own}), length))
        return list(dict.fromkeys(modes))  # those without a threshold once

    def _score(self, way: Way) -> dict[str, float]:
        (score,) = compare_accuracy([way], self.origin.tasks[0], self.origin.text, self.base.evaluation.batch_size)
        return {name: score[name] for name in _MEASURED}

    def _read(self, path: Path, run: Run, what: str) -> dict[str, Any]:
        result = read_json(path)
        if result.get("config") != self._measured_config(run):
            raise InputError(f"{path} was made under another config; choose another --workdir or remove that {what}")
        return result

    def _directory(self, cell: Cell) -> Path:
        return self.workdir / "cells" / cell.name

    def _measured_config(self, run: Run) -> dict[str, Any]:
        """As JSON gives it back."""
        return json.loads(json.dumps(dict(training=_plain(run)) | dataclasses.asdict(self.measures)))


@contextlib.contextmanager
def _hear_compilations() -> Iterator[Counter]:
    """Counts, while it is open, jax's events: programs that were prepared, and those that the persistent cache had."""
    heard: Counter = Counter()
    hear = lambda event, *_, **__: heard.update([event])  # noqa: E731
    monitoring.register_event_duration_secs_listener(hear)
    monitoring.register_event_listener(hear)
    try:
        yield heard
    finally:
        monitoring.unregister_event_duration_listener(hear)
        monitoring.unregister_event_listener(hear)


def _plain(run: Run) -> dict[str, Any]:
    """Its config as JSON, infinities as text."""
    return json.loads(run.config, parse_constant=str)
