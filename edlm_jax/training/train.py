"""Training: `train(run, workdir)` starts or continues a run. The loop's order is a contract; do not change it."""

import contextlib
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from edlm_jax.data.counts import totals
from edlm_jax.diffusion.visited import Visited
from edlm_jax.models.spec import ModelSpec
from edlm_jax.parallel.processes import agree, announce, largest
from edlm_jax.pretrained import open_parameters
from edlm_jax.training.checkpoint import Checkpoints, check_sizes, check_unchanged, check_workdir, write_workdir
from edlm_jax.training.fitting import fit, is_open, remember
from edlm_jax.training.heldout import heldout_metrics, make_bound_step
from edlm_jax.training.initial import abstract_state, initial_params, initial_state, read_spec
from edlm_jax.training.metrics import Clock, MetricsFiles, Window, drift_metrics, mfu_meter, step_flops
from edlm_jax.training.progress import Reporter
from edlm_jax.training.run import Run
from edlm_jax.training.start import Batches, about_data, about_model
from edlm_jax.training.step import TrainState, make_eval_step, make_train_step
from edlm_jax.training.stop import StopSignal
from edlm_jax.training.teacher import Teacher, find_teacher

_QUEUED = 1.0  # seconds: a step that takes longer is not queued behind another, which would gain nothing


def train(run: Run, workdir: str | Path) -> dict[str, Any]:
    """Runs until its last step, or until SIGTERM; returns a summary (step, completed, seconds, last scalars).

    Everything that can be refused is refused before the first file is written. A work directory with checkpoints of the
    same config is continued exactly where its newest complete checkpoint stands.
    """
    workdir = Path(workdir)
    newest, mesh = check_workdir(workdir, run.config), run.make_mesh()
    spec, tokenizer = read_spec(run.start)
    teacher = find_teacher(run, spec, mesh)
    if teacher:
        teacher.check_tokens(spec)
    if newest is not None:
        check_unchanged(workdir, _fingerprints(run, teacher), spec, tokenizer)
    with Reporter(run.steps) as reporter, jax.set_mesh(mesh):
        with reporter.busy("reading the data"):
            batches = Batches(run.data, spec, tokenizer, mesh)
        if newest is not None:
            check_sizes(workdir / "checkpoints" / str(newest), batches.train, run.data.sources)
        announce(mesh, run.data.shards)
        if is_open(run):
            with reporter.busy("finding how many rows fit"):
                run = fit(run, spec, mesh, None if newest is None else workdir)
            reporter.say(f"{run.optimizer.accumulation} micro-batches a step, remat {run.remat}")
        trainer = Trainer(run, workdir, newest, spec, teacher, batches, reporter)
        lines = about_model(run.start, spec, tokenizer, trainer.abstract.params)
        for line in [*lines, *about_data(batches, run.objective.layout, run.steps)]:
            reporter.say(line)
        return trainer.loop()


@dataclass
class Trainer:
    """One process's part of a run: what the loop's five actions need."""

    run: Run
    workdir: Path
    newest: int | None  # checkpoint, with which it goes on
    spec: ModelSpec
    teacher: Teacher | None
    batches: Batches
    reporter: Reporter

    def __post_init__(self):
        run, teacher, self.mesh = self.run, self.teacher, self.batches.mesh
        self.objective, self.numbers = run.objective.of_model(self.spec), run.numbers
        graphdef, self.abstract = abstract_state(run.start, run.optimizer, self.spec, self.mesh)
        if teacher:
            with self.reporter.busy("reading the teacher's weights"):
                self.numbers = self.numbers._replace(teacher=teacher.weights())
        how = dict(lora=run.start.lora, remat=run.remat, teacher=teacher)
        shardings, pieces = jax.tree.map(lambda x: x.sharding, self.abstract), run.optimizer.accumulation
        self.train_step = make_train_step(graphdef, self.objective, run.optimizer, shardings, **how)
        self.eval_step = make_eval_step(graphdef, self.objective, self.numbers, run.remat, teacher, pieces)
        self.gated = run.start.lora is not None and run.start.lora.gated  # the model is AR, and does not move
        self.bound_step = None if self.gated else make_bound_step(graphdef, self.objective, run.remat, pieces)
        self.compiled: set[int] = set()
        self.pending: tuple[int, dict, dict] | None = None  # (step, metrics on device, local batch)
        self.settled, self.step_seconds = 0.0, math.inf  # when the last step was, by the clock, and what it took

    def loop(self) -> dict[str, Any]:
        """restore -> [ settle -> eval -> save -> next batch -> step -> log ] ... The order makes a resumed run exact.

        The iterator is only advanced after the save, so that a checkpoint holds the data state of its step. Metrics are
        fetched one step late, so that the device never waits for the host; those of slow steps at once, so that SIGTERM
        never waits for a step that was queued behind another. They are settled before a save, so that no checkpoint
        ever holds a state that a NaN went through. A checkpoint may stand where SIGTERM gave up the evaluation of its
        step, or an error ended it: that is made up for when the run goes on, and one that is written not repeated.
        """
        run, began = self.run, time.perf_counter()
        with self.reporter.busy("reading the weights"):
            state, first = self._restore()
        self.clock, self.files = Clock(), MetricsFiles(self.workdir, first)
        self.last, evaluated = self.files.before, largest(int(self.files.evaluated))
        flops = step_flops(self.spec, self.objective, run.data.batch_size, run.data.length, run.start.lora)
        self.window = Window(self.clock, mfu_meter(flops, run.start.dtype))
        with contextlib.closing(self.files), StopSignal(self.reporter.say) as self.stop:
            self.reporter.begin(first)
            for step in itertools.count(first):
                done, stopped = step >= run.steps, self.stop.requested(step)
                if done or stopped or _due(step, run.eval_every) or _due(step, run.saves.every):
                    self._settle()
                if (done or _due(step, run.eval_every)) and not stopped and not (evaluated and step == first):
                    with self._saved_on_error(step, state):
                        stopped = not self._evaluate(step, state.params)
                if done or stopped or _due(step, run.saves.every):
                    self._save(step, state)
                if done or stopped:
                    break
                with self._saved_on_error(step, state):
                    batch = next(self.batches.train)
                state, metrics = self._step(step, state, batch)
                self._settle()
                self.pending = (step + 1, metrics, batch)
                if self.step_seconds > _QUEUED:
                    self._settle()
            with self.reporter.busy("writing the checkpoint"):
                self.checkpoints.close()
            self.reporter.say(f"{'stopped by SIGTERM' if stopped else 'finished'} at step {step} of {run.steps}")
        return dict(step=step, completed=not stopped, seconds=time.perf_counter() - began, **self.last)

    def _restore(self) -> tuple[TrainState, int]:
        """The newest state, or the first one; only then is the work directory written to."""
        run, newest = self.run, self.newest
        agree(-1 if newest is None else newest, "its newest checkpoint (-1 = none)")
        if newest is None:
            params = initial_params(run.start, self.spec, self.mesh)
            state = initial_state(run.start, run.optimizer, params, self.abstract)
        write_workdir(self.workdir, run.config, self.spec, run.start.lora, _fingerprints(run, self.teacher))
        remember(run, self.mesh, self.workdir)
        self.checkpoints = Checkpoints(self.workdir, run.saves)
        if newest is None:
            return state, 0
        return self.checkpoints.restore(newest, self.abstract, self.batches.train), newest

    def _evaluate(self, step: int, params: dict) -> bool:
        """Writes held-out losses and drift; False if SIGTERM came meanwhile, and nothing is written."""
        with self.clock.pause(), self.reporter.busy("held-out loss"):
            batches = map(
                self.batches.to_global, itertools.takewhile(lambda _: not self.stop.heard, self.batches.held_out)
            )
            scalars = heldout_metrics(self.eval_step, self.bound_step, self.objective, params, batches)
            if self.run.start.path and not self.gated and not self.stop.heard:
                scalars |= self._drift(params["layers"])
        if scalars and not self.stop.heard:
            self._write(step, scalars)
        return not self.stop.heard

    def _drift(self, layers: dict) -> dict[str, float]:
        """How far the matrices are from where they began; these are read again: a copy would cost memory all along."""
        start = self.run.start
        if start.lora:  # they are still there, and what the adapters add is how far
            return drift_metrics(layers.__getitem__, layers, start.lora)
        with open_parameters(start.path, "float32", self.mesh) as readers:
            return drift_metrics(lambda name: readers["layers", name](), layers)

    def _save(self, step: int, state: TrainState) -> None:
        with self.clock.pause():
            self.checkpoints.save(step, state, self.batches.train)

    @contextlib.contextmanager
    def _saved_on_error(self, step: int, state: TrainState) -> Iterator[None]:
        """Where the data ends (too many documents of no use) or an evaluation fails, the state is saved first."""
        try:
            yield
        except Exception:
            if jax.process_count() == 1:  # of several one alone may meet it, and no save waits for the others
                self._settle()
                self._save(step, state)
                self.checkpoints.close()
            raise

    def _step(self, step: int, state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        lengths, numbers = self.run.block_lengths, self.numbers
        batch, block_length = self.batches.to_global(batch), lengths.at(self.run.start.seed, step)
        if block_length in self.compiled:
            return self.train_step(state, batch, numbers, block_length=block_length)
        what = "the training step" + (f" for blocks of {block_length}" if lengths.several else "")
        with self.clock.pause(), self.reporter.compiling(what):
            self.compiled.add(block_length)
            return self.train_step(state, batch, numbers, block_length=block_length)

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
        logged = step % self.run.log_every == 0 or step == self.run.steps
        self.reporter.step(step, logged=logged)
        if logged:
            left_out = {f"documents_{kind}": count for kind, count in totals(self.batches.train.tallies).items()}
            self._write(step, self.window.close() | left_out)

    def _refuse_nan(self, step: int, metrics: dict, batch: dict) -> None:
        self._write(step, dict(loss=float(metrics["loss"]), grad_norm=float(metrics["grad_norm"])))
        name = "nan_batch.npz" if jax.process_index() == 0 else f"nan_batch.{jax.process_index()}.npz"
        np.savez(self.workdir / name, step=step - 1, seed=self.run.start.seed, **batch)
        self.checkpoints.close()
        raise FloatingPointError(
            f"loss {metrics['loss']} and gradient norm {metrics['grad_norm']} at step {step}: the batch is in "
            f"{self.workdir / name}, the last good state in {self.workdir / 'checkpoints'}"
        )

    def _write(self, step: int, scalars: dict[str, float]) -> None:
        self.last |= scalars
        self.files.write(step, scalars)
        self.reporter.scalars(step, scalars)


def _fingerprints(run: Run, teacher: Teacher | None) -> dict[str, str]:
    """Of what fields of config.objective name and a run that goes on must find as it was, by these fields."""
    noise = run.objective.noise
    states = {"states": noise.fingerprint} if isinstance(noise, Visited) else {}
    return states | ({"teacher": teacher.fingerprint} if teacher else {})


def _due(step: int, every: int) -> bool:
    return every > 0 and step > 0 and step % every == 0
