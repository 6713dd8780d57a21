"""The stages of `edlm convert`: port, train, export, measure, report."""

import functools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from edlm_jax.commands.stages import Stages
from edlm_jax.decoding import Decoder
from edlm_jax.diagnosis.drift import drift_from
from edlm_jax.diffusion.streams import AUTOREGRESSIVE
from edlm_jax.errors import InputError, StoppedError
from edlm_jax.evaluation import compare
from edlm_jax.evaluation.heldout import heldout_loss
from edlm_jax.evaluation.tasks.task import Way
from edlm_jax.models import Transformer
from edlm_jax.parallel.mesh import decoding_mesh
from edlm_jax.pretrained import load_pretrained, open_parameters, save_pretrained
from edlm_jax.pretrained.load import FLOATS
from edlm_jax.reports.picture import plot_report
from edlm_jax.reports.report import describe_machine, read_losses, write_report
from edlm_jax.training.checkpoint import check_workdir, load_trained
from edlm_jax.training.run import Run
from edlm_jax.training.train import train

STAGES = ("port", "train", "export", "accuracy", "speed", "held-out loss", "drift")


def convert(run: Run, workdir: Path, name: str) -> dict[str, Any]:
    """All stages in order; returns the report, which is also in workdir/report.json."""
    if run.start.lora is not None and run.start.lora.gated:
        raise InputError(
            "config.lora.columns='noisy' converts nothing: use edlm train and edlm export; drafts are for modes such "
            "as self_speculation"
        )
    compare.check_evaluation(run)
    if not run.objective.layout.noisy:
        raise InputError("config.objective.pattern='causal' trains an AR model and converts nothing: use `edlm train`")
    if not run.start.path:
        raise InputError("config.init.path is empty: `edlm convert` needs an AR checkpoint to start from")
    check_workdir(workdir, run.config)
    stages = Stages(workdir / "stages.json", run.config, STAGES)
    job = _Job(run, workdir)
    ported = stages.run("port", job.port)
    training = stages.run("train", job.train, resumes=True)
    stages.run("export", job.export)
    asked = lambda: (job.ways, job.tasks[0], job.text)  # noqa: E731
    accuracy = stages.run("accuracy", lambda: compare.compare_accuracy(*asked(), run.evaluation.batch_size))
    speed = stages.run("speed", lambda: compare.compare_speed(*asked(), run.evaluation.timed_prompts))
    heldout, drift = stages.run("held-out loss", job.heldout), stages.run("drift", job.drift)
    report = dict(name=name, ported=ported, **compare.results_by_mode(job.modes, accuracy, speed), heldout_loss=heldout)
    report |= dict(weight_drift=drift, training=training, seconds=sum(stages.seconds.values()))
    report |= dict(stage_seconds=stages.seconds, **describe_machine(), config=json.loads(run.config))
    plot_report(report, read_losses(workdir / "metrics.jsonl"), workdir / "report.png")
    write_report(report, workdir / "report.json")
    print(f"report: {workdir / 'report.json'}, {workdir / 'report.png'}; model: {job.exported}", file=sys.stderr)
    return report


class _Job(compare.Origin):
    """The work of each stage; what it needs from an earlier one it reads from disk, so a job can begin anywhere."""

    def __init__(self, run: Run, workdir: Path):
        super().__init__(run, [compare.AR, *compare.modes_at(run.objective.layout, run.evaluation.thresholds)])
        self.workdir, self.exported = workdir, workdir / "model"

    def port(self) -> dict[str, Any]:
        """Read the AR checkpoint strictly, and say what it is and which token will be the mask."""
        spec, tokenizer = self.start
        tasks, refused = self.tasks  # before the weights
        with open_parameters(self.run.start.path, self.run.start.dtype, self.trained_on) as readers:
            parameters = sum(read().size for read in readers.values())  # none of which stands beside training
        found = dict(source=self.run.start.path, family=spec.family, parameters=parameters, layers=spec.num_layers)
        mask_token = tokenizer.convert_ids_to_tokens(spec.conversion.mask_token_id)
        found |= dict(width=spec.width, vocabulary=spec.vocab_size, mask_token=mask_token)
        return found | dict(tasks=sum(len(task.questions) for task in tasks), refused_tasks=refused)

    def train(self) -> dict[str, Any]:
        summary = train(self.run, self.workdir)
        if not summary["completed"]:
            raise StoppedError(f"stopped at step {summary['step']} of {self.run.steps}; the same command continues")
        return summary

    def export(self) -> dict[str, Any]:
        """Write the newest checkpoint as a Hugging Face directory, in place of an older export of this run.

        It is stored as the AR checkpoint is: what decodes it reads as many bytes a forward.
        """
        model, stored = load_trained(self.workdir, mesh=self.trained_on), self.start[0].stored_dtype
        dtype = stored if stored in FLOATS else self.run.start.dtype
        shutil.rmtree(self.exported, ignore_errors=True)
        save_pretrained(model, self.exported, dtype=dtype)
        return {"directory": str(self.exported), "dtype": dtype}

    def heldout(self) -> dict[str, float]:
        """Nats per held-out token of both models, each under its own objective, one after the other."""
        data, tokenizer, mesh = self.run.data, self.text.tokenizer, self.trained_on
        if not data.eval_sources:
            return {}
        ar = heldout_loss(self._load(self.run.start.path, mesh), data, tokenizer, AUTOREGRESSIVE)
        converted = heldout_loss(self._load(self.exported, mesh), data, tokenizer, self.run.objective.layout)
        return {"ar": ar, "diffusion": converted}

    def drift(self) -> dict[str, Any]:
        """How far the weights moved, before an export rounds them."""
        after = load_trained(self.workdir, mesh=self.trained_on)
        with open_parameters(self.run.start.path, "float32", self.trained_on) as readers:
            return drift_from(lambda name: readers["layers", name](), after)

    @functools.cached_property
    def trained_on(self) -> Mesh | None:
        """The run's mesh; None is one device."""
        mesh = self.run.make_mesh()
        return mesh if mesh.size > 1 else None

    @functools.cached_property
    def ways(self) -> list[Way]:
        """Everything that is compared, on the run's devices: as many share the weights as its tensor axis has."""
        mesh, take = self.trained_on, all(task.scorer.decodes for task in self.tasks[0])  # likelihoods ask the model
        if mesh is not None:
            mesh = decoding_mesh(mesh.shape["tensor"], mesh.devices.ravel().tolist())

        def way(path: str | Path) -> Way:
            model = self._load(path, mesh)
            return Way(Decoder(model, take=take), compare.AR, None if take else model)

        ar, converted = way(self.run.start.path), way(self.exported)
        return [(ar if mode == compare.AR else converted)._replace(mode=mode) for mode in self.modes]

    def _load(self, path: str | Path, mesh: Mesh | None) -> Transformer:
        return load_pretrained(path, dtype=self.run.start.dtype, mesh=mesh)
