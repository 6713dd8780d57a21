"""A conversion's curve: what each kept checkpoint of a run has lost and gained, and how many tokens would be enough.

    edlm train --config=smollm2_conversion --workdir=RUN
    python -m tests.benchmarks.conversion RUN OUT.json [QUESTIONS] [STEP ...]

measures the steps that OUT.json does not have yet, step 0 among them, on questions of the task `reading` (100), writes
the figures with the fit to OUT.json and draws them as OUT.png. A model of causal blocks is decoded by `mars` and has
no diffusion bound: it learned what follows, not what is hidden.
"""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from scipy.stats import t

from edlm_jax.decoding import Decoder
from edlm_jax.decoding.modes import Mars, trained_mode
from edlm_jax.diffusion.streams import AUTOREGRESSIVE
from edlm_jax.evaluation.compare import AR, Origin, modes_at, summarise
from edlm_jax.evaluation.heldout import heldout_loss
from edlm_jax.evaluation.tasks.reading import reading
from edlm_jax.evaluation.tasks.task import Outcome, Task, Way
from edlm_jax.files import read_json
from edlm_jax.models import Transformer
from edlm_jax.models.lora import merge
from edlm_jax.reports.report import describe_machine, write_report
from edlm_jax.training.checkpoint import abstract_model, load_trained
from edlm_jax.training.initial import initial_params
from edlm_jax.training.run import Run
from tests.benchmarks.plot_conversion import plot_conversion

THRESHOLDS = (0.9, 0.8)
_ROWS = 32  # decoded at a time
_KEPT = ("accuracy", "tokens_per_forward", "kinds")


class Checkpoints:
    """A run whose checkpoints are measured, and the AR model that it began with, which is asked the same."""

    def __init__(self, workdir: Path, questions: int):
        self.workdir, self.run = workdir, Run.of(ConfigDict(read_json(workdir / "config.json")))
        self.layout = self.run.objective.layout
        self.drafts = trained_mode(self.layout) is Mars  # it learned what follows, not what is hidden
        self.modes = {"AR": AR} | {str(mode.threshold): mode for mode in modes_at(self.layout, THRESHOLDS)}
        self.origin = Origin(self.run, list(self.modes.values()))
        self.task: Task = reading(self.origin.text.tokenizer, questions)
        self.reference = self._ask(Decoder(self.origin.ar), "AR")

    def baseline(self) -> dict[str, Any]:
        """Of the AR model: nats per token of its own held-out answers, accuracy."""
        return dict(loss=self._loss(self.origin.ar, AUTOREGRESSIVE), **self._summary(self.reference))

    def point(self, step: int) -> dict[str, Any]:
        """Of a checkpoint: its AR loss, the bound if it has one, and what each way of decoding gives."""
        model = load_trained(self.workdir, step=step) if step else self._untrained()
        decoder, data = Decoder(model), self.run.data
        ways = {name: self._summary(self._ask(decoder, name)) for name in self.modes}
        losses = dict(ar_loss=self._loss(model, AUTOREGRESSIVE))
        if not self.drafts:
            losses |= dict(bound=self._loss(model, self.layout))
        return dict(step=step, row_tokens=step * data.batch_size * data.length, **losses, ways=ways)

    def _untrained(self) -> Transformer:
        start, (spec, _) = self.run.start, self.origin.start
        params = initial_params(start, spec, self.run.make_mesh())
        return nnx.merge(abstract_model(spec, start.dtype, None)[0], merge(params, start.lora))

    def _ask(self, decoder: Decoder, name: str) -> list[Outcome]:
        way = Way(decoder, self.modes[name])
        return self.task.scorer.score(self.task.questions, way, self.origin.text, _ROWS)

    def _summary(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """With `agreement`: the share of the AR model's tokens that stand at the same place of the answer."""
        found = summarise([question.kind for question in self.task.questions], outcomes)
        pairs = [(own.row.tokens, other.row.tokens) for own, other in zip(outcomes, self.reference, strict=True)]
        same = sum(a == b for own, other in pairs for a, b in zip(own, other, strict=False))
        texts = sum(own == other for own, other in pairs) / len(pairs)
        agreement = dict(agreement=same / sum(len(other) for _, other in pairs), same_text=texts)
        return {name: found[name] for name in _KEPT} | agreement

    def _loss(self, model: Transformer, layout) -> float:
        return heldout_loss(model, self.run.data, self.origin.text.tokenizer, layout)


def fit(tokens: Sequence[float], values: Sequence[float], target: float) -> dict[str, Any]:
    """value = a + b ln(tokens) by least squares, and at how many tokens it would be `target`.

    `enough` is None where the last value has reached the target, and where the fit does not say: where b leads away
    from it, or may be zero (Student's t, 95 %). Else `enough_from` and `enough_to` are one standard error of
    ln(enough) away, from the covariance of a and b alone: that the line goes on is assumed, not seen.
    """
    x, y = np.log(tokens), np.asarray(values)
    (b, a), covariance = np.polyfit(x, y, 1, cov=True)
    found = dict(a=a, b=b, a_error=math.sqrt(covariance[1, 1]), b_error=math.sqrt(covariance[0, 0]), target=target)
    found |= dict(enough=None, enough_from=None, enough_to=None)
    if (target - y[-1]) * b > 0 and abs(b) > t.ppf(0.975, len(x) - 2) * found["b_error"]:
        log = (target - a) / b
        gradient = np.array([log, 1]) / b  # of log by (b, a), but for its sign
        error = math.sqrt(gradient @ covariance @ gradient)
        names = dict(enough=log, enough_from=log - error, enough_to=log + error)
        found |= {name: math.exp(min(value, 700)) for name, value in names.items()}
    return {name: value if value is None else float(value) for name, value in found.items()}


def fits(ar: dict[str, Any], points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of the bound, if there is one, to the AR loss, and of accuracies to the AR model's; the untrained model is on no
    line."""
    trained = [point for point in points if point["step"]]
    if len(trained) < 3:
        return {}
    tokens = [point["row_tokens"] for point in trained]
    found = {}
    if "bound" in trained[0]:
        found |= dict(bound=fit(tokens, [point["bound"] for point in trained], ar["loss"]))
    for name in trained[0]["ways"]:
        found |= {f"accuracy {name}": fit(tokens, [p["ways"][name]["accuracy"] for p in trained], ar["accuracy"])}
    return found


def main(workdir: str, out: str, questions: str = "100", *steps: str) -> None:
    """Measures what is not there yet, and writes after each point."""
    path, directory = Path(out), Path(workdir)
    report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else dict(questions=int(questions))
    kept = [0, *sorted(int(entry.name) for entry in (directory / "checkpoints").iterdir() if entry.name.isdigit())]
    wanted = [int(step) for step in steps] or kept
    points = {point["step"]: point for point in report.get("points", ())}
    if missing := [step for step in wanted if step not in points]:
        checkpoints = Checkpoints(directory, report["questions"])
        report |= dict(ar=checkpoints.baseline(), config=json.loads(checkpoints.run.config), **describe_machine())
        for step in missing:
            points[step] = checkpoints.point(step)
            print(json.dumps(points[step]), flush=True)
            report["points"] = [points[step] for step in sorted(points)]
            write_report(report, path)
    command = f"python -m tests.benchmarks.conversion {workdir} {out} {report['questions']}"
    write_report(report | dict(fits=fits(report["ar"], report["points"]), command=command), path)
    plot_conversion(read_json(path), path.with_suffix(".png"))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
