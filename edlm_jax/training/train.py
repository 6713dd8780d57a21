"""Training: `train(config, workdir)` starts or continues a run. The loop's order is a contract; do not change it."""

import itertools
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from edlm_jax.data.counts import totals
from edlm_jax.data.pipeline import make_dataset, make_eval_batches
from edlm_jax.data.shards import BatchIterator
from edlm_jax.models.spec import ModelSpec
from edlm_jax.parallel.mesh import check_batch, local_rows, to_global
from edlm_jax.parallel.processes import agree, announce
from edlm_jax.training.checkpoint import Checkpoints, check_workdir, latest_step, write_workdir
from edlm_jax.training.config import adapters, grid, training_mesh, validate
from edlm_jax.training.data_state import check_sizes
from edlm_jax.training.held_out import held_out_loss, make_bound_step
from edlm_jax.training.initial import abstract_state, initial_params, initial_state, read_spec
from edlm_jax.training.metrics import (
    Clock,
    MetricsFiles,
    Window,
    mfu_meter,
    step_flops,
    weight_drift,
)
from edlm_jax.training.objective import Objective
from edlm_jax.training.progress import Reporter
from edlm_jax.training.start import about_data, about_model
from edlm_jax.training.step import Numbers, TrainState, choose_block_length, make_eval_step, make_train_step
from edlm_jax.training.stop import StopSignal

_QUEUED = 1.0  # seconds: a step that takes longer is not queued behind another, which would gain nothing


def train(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Runs until config.steps, or until SIGTERM; returns a summary (step, completed, seconds, last scalars).

    Everything that can be refused is refused before the first file is written. A work directory with checkpoints of the
    same config is continued exactly where its newest complete checkpoint stands.
    """
    workdir = Path(workdir)
    validate(config)
    check_workdir(workdir, config)
    mesh = training_mesh(config)
    spec, tokenizer = read_spec(config)
    with Reporter(config.steps) as reporter, jax.set_mesh(mesh):
        with reporter.busy("reading the data"):
            batches = Batches(config, spec, tokenizer, mesh)
        if (newest := latest_step(workdir)) is not None:
            check_sizes(workdir / "checkpoints" / str(newest), batches.train, config.data.sources)
        announce(mesh, config.data.shards)
        run = Run(config, workdir, mesh, spec, batches, reporter)
        for line in [*about_model(config, spec, tokenizer, run.abstract.params), *about_data(config, batches)]:
            reporter.say(line)
        return run.loop()


class Batches:
    """This process's rows of the batches: training, an iterator whose state is saved, and held-out, read once."""

    def __init__(self, c: ConfigDict, spec: ModelSpec, tokenizer, mesh: Mesh):
        self.mesh, self.grid, self.batch_size = mesh, grid(c), c.data.batch_size
        self.rows = local_rows(mesh, self.batch_size)
        mask_id = spec.conversion.mask_token_id if spec.conversion else None
        which = dict(block_length=self.grid, grid=c.objective.grid, rows=self.rows, mask_id=mask_id)
        self.train: BatchIterator = iter(make_dataset(c.data, tokenizer, seed=c.seed, **which))
        held_out = make_eval_batches(c.data, tokenizer, **which) if c.data.eval_sources else None
        self.held_out = list(held_out or ())
        self.held_out_tallies = held_out.tallies if held_out else []

    def to_global(self, batch: dict) -> dict[str, jax.Array]:
        """A batch on the mesh, checked."""
        check_batch(batch, grid=self.grid)
        return to_global(batch, self.mesh, self.rows, self.batch_size)


class Run:
    """One process's part of a run: what the loop's five actions need."""

    def __init__(
        self, c: ConfigDict, workdir: Path, mesh: Mesh, spec: ModelSpec, batches: Batches, reporter: Reporter
    ):
        self.c, self.workdir, self.mesh, self.spec = c, workdir, mesh, spec
        self.batches, self.reporter = batches, reporter
        self.objective = Objective.from_config(c, spec)
        graphdef, self.abstract = abstract_state(c, spec, mesh)
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract)
        self.train_step = make_train_step(c, graphdef, self.objective, shardings)
        self.eval_step = make_eval_step(c, graphdef, self.objective)
        self.bound_step = make_bound_step(graphdef, self.objective, c.remat)
        self.compiled: set[int] = set()
        self.pending: tuple[int, dict, dict] | None = None  # (step, metrics on device, local batch)
        self.last: dict[str, float] = {}
        self.settled, self.step_seconds = 0.0, math.inf  # when the last step was, by the clock, and what it took

    def loop(self) -> dict[str, Any]:
        """restore -> [ settle -> eval -> save -> next batch -> step -> log ] ... The order makes a resumed run exact.

        The iterator is only advanced after the save, so that a checkpoint holds the data state of its step. Metrics are
        fetched one step late, so that the device never waits for the host; those of slow steps at once, so that SIGTERM
        never waits for a step that was queued behind another. They are settled before a save, so that no checkpoint
        ever holds a state that a NaN went through.
        """
        c, began = self.c, time.perf_counter()
        with self.reporter.busy("reading the weights"):
            state, first = self._restore()
        self.clock, self.files = Clock(), MetricsFiles(self.workdir, first)
        flops = step_flops(self.spec, self.objective, c.data.batch_size, c.data.length, adapters(c))
        self.window = Window(self.clock, mfu_meter(flops, c.dtype))
        try:
            with StopSignal(self.reporter.say) as self.stop:
                self.reporter.begin(first)
                for step in itertools.count(first):
                    done, stopped = step >= c.steps, self.stop.requested(step)
                    if done or stopped or _due(step, first, c.eval_every) or _due(step, first, c.checkpoint.every):
                        self._settle()
                    if (done or _due(step, first, c.eval_every)) and not stopped:
                        stopped = not self._evaluate(step, state.params)
                    if done or stopped or _due(step, first, c.checkpoint.every):
                        self._save(step, state)
                    if done or stopped:
                        break
                    batch = self._next_batch()
                    state, metrics = self._step(step, state, batch)
                    self._log(step + 1, metrics, batch)
                with self.reporter.busy("writing the checkpoint"):
                    self.checkpoints.close()
                self.reporter.say(f"{'stopped by SIGTERM' if stopped else 'finished'} at step {step} of {c.steps}")
        finally:
            self.files.close()
        return dict(step=step, completed=not stopped, seconds=time.perf_counter() - began, **self.last)

    def _restore(self) -> tuple[TrainState, int]:
        """The newest state, or the first one; only then is the work directory written to."""
        newest = latest_step(self.workdir)
        agree(-1 if newest is None else newest, "its newest checkpoint (-1 = none)")
        state = None
        if newest is None:
            state = initial_state(self.c, initial_params(self.c, self.spec, self.mesh), self.abstract)
        write_workdir(self.workdir, self.c, self.spec)
        keep = dict(keep_last=self.c.checkpoint.keep_last, keep_every=self.c.checkpoint.keep_every)
        self.checkpoints = Checkpoints(self.workdir, **keep)
        if state is not None:
            return state, 0
        step = self.checkpoints.latest_step
        return self.checkpoints.restore(step, self.abstract, self.batches.train), step

    def _evaluate(self, step: int, params: dict) -> bool:
        """Writes held-out losses and drift; False if SIGTERM came meanwhile, and nothing is written."""
        with self.clock.pause(), self.reporter.busy("held-out loss"):
            batches = map(self.batches.to_global, self.batches.held_out)
            batches = itertools.takewhile(lambda _: not self.stop.heard, batches)
            scalars = held_out_loss(self.eval_step, self.bound_step, self.objective, params, batches)
            if self.c.init.path and not self.stop.heard:
                before = initial_params(self.c, self.spec, self.mesh)  # read again: a copy would cost memory all along
                drift = weight_drift(before, params, adapters(self.c))
                scalars |= {name: float(value) for name, value in drift.items()}
        if scalars and not self.stop.heard:
            self._write(step, scalars)
        return not self.stop.heard

    def _save(self, step: int, state: TrainState) -> None:
        if step != self.checkpoints.latest_step:
            with self.clock.pause():
                self.checkpoints.save(step, state, self.batches.train)

    def _next_batch(self) -> dict[str, np.ndarray]:
        return next(self.batches.train)

    def _step(self, step: int, state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        block_length = choose_block_length(self.c, step)
        batch, numbers = self.batches.to_global(batch), Numbers.from_config(self.c)
        if block_length in self.compiled:
            return self.train_step(state, batch, numbers, block_length=block_length)
        what = "the training step" + (f" for blocks of {block_length}" if self.c.objective.random_block_lengths else "")
        with self.clock.pause(), self.reporter.compiling(what):
            self.compiled.add(block_length)
            return self.train_step(state, batch, numbers, block_length=block_length)

    def _log(self, step: int, metrics: dict, batch: dict) -> None:
        self._settle()
        self.pending = (step, metrics, batch)
        if self.step_seconds > _QUEUED:
            self._settle()

    def _settle(self) -> None:
        """Fetches the metrics of the step before; stops the run if its loss or gradient is no number."""
        if self.pending is None:
            return
        step, metrics, batch = self.pending
        self.pending = None
        metrics = jax.device_get(metrics)
        if not (np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])):
            self._refuse_nan(step, metrics, batch)
        self.window.add(metrics)
        seconds = self.clock.seconds()
        self.step_seconds, self.settled = seconds - self.settled, seconds
        logged = step % self.c.log_every == 0 or step == self.c.steps
        self.reporter.step(step, logged=logged)
        if logged:
            left_out = {f"documents_{kind}": count for kind, count in totals(self.batches.train.tallies).items()}
            self._write(step, self.window.close() | left_out)

    def _refuse_nan(self, step: int, metrics: dict, batch: dict) -> None:
        self._write(step, dict(loss=float(metrics["loss"]), grad_norm=float(metrics["grad_norm"])))
        name = "nan_batch.npz" if jax.process_index() == 0 else f"nan_batch.{jax.process_index()}.npz"
        np.savez(self.workdir / name, step=step - 1, seed=self.c.seed, **batch)
        self.checkpoints.close()
        raise FloatingPointError(
            f"loss {metrics['loss']} and gradient norm {metrics['grad_norm']} at step {step}: the batch is in "
            f"{self.workdir / name}, the last good state in {self.workdir / 'checkpoints'}"
        )

    def _write(self, step: int, scalars: dict[str, float]) -> None:
        self.last |= scalars
        self.files.write(step, scalars)
        self.reporter.scalars(step, scalars)


def _due(step: int, first: int, every: int) -> bool:
    return every > 0 and step % every == 0 and step > first
