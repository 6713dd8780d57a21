"""The drafter's stages of `edlm lossless`: the model answers, adapters of noisy columns learn from that."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from edlm_jax.benchmarks.forward import product_rate
from edlm_jax.benchmarks.training import time_train_step
from edlm_jax.commands.config import load_run
from edlm_jax.commands.main import parse
from edlm_jax.commands.responses import write_responses
from edlm_jax.commands.stages import Stages
from edlm_jax.data.questions import questions
from edlm_jax.errors import StoppedError
from edlm_jax.files import write_whole
from edlm_jax.models.lora import ADAPTER_NAMES
from edlm_jax.pretrained import load_pretrained, load_tokenizer, save_pretrained
from edlm_jax.reports.report import read_losses
from edlm_jax.training.checkpoint import load_trained
from edlm_jax.training.train import train

STAGES = ("answers", "pace", "drafter", "export")
_ANSWERS = 20  # a minute of training: about as many tokens as training reads in that time
_LONGEST, _TOGETHER = 160, 24  # tokens of an answer; rows that are decoded at a time


class DrafterJob:
    """The work of each stage; what it needs from an earlier one it reads from disk.

    Args:
      ar: the model that is to be drafted for, a directory.
      config: of the training, a file or a recorded config's name, with its `overrides`.
      minutes: how long it may take, by the pace of the first steps.
    """

    def __init__(self, ar: Path, workdir: Path, config: str, overrides: list[str], minutes: float):
        self.ar, self.workdir, self.minutes = ar, workdir, minutes
        self.asked, self.answered = workdir / "questions.txt", workdir / "answers.jsonl"
        source = dict(kind="jsonl", path=str(self.answered))
        self.config, self.overrides = config, [f"--config.init.path={ar}", f"--config.data.sources=({source},)"]
        self.overrides += overrides

    def run(self, stages: Stages, given: Any, target: Path) -> dict[str, Any]:
        """All stages, as far as they are not finished, to a model in `target`; returns what the report says of them.

        `given` is what they depend on: once it is another they run again, from nothing.
        """
        found: dict[str, Any] = {}
        found |= stages.run("answers", self.answers, resumes=True, given=given, clear=self.clear)
        found |= stages.run("pace", self.pace)
        found |= stages.run("drafter", lambda: self.train(found["steps"]), resumes=True)
        stages.run("export", lambda: self.export(target))
        return found

    def clear(self) -> None:
        """Removes a drafter of other settings."""
        shutil.rmtree(self.workdir, ignore_errors=True)

    def answers(self) -> dict[str, Any]:
        """The model's own greedy answers to questions of the train split; continues where it was stopped."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        asked = questions("train", max(round(_ANSWERS * self.minutes), 1))
        write_whole(self.asked, "".join(f"{question}\n" for question in asked))
        what = [f"--model={self.ar}", f"--prompts-file={self.asked}", f"--out={self.answered}", "--mode=ar"]
        what += [f"--max-new-tokens={_LONGEST}", f"--batch-size={_TOGETHER}"]
        chat = ["--chat"] if load_tokenizer(self.ar).chat_template else []
        write_responses(parse(["generate", *what, *chat]))
        documents = [json.loads(line) for line in self.answered.read_text(encoding="utf-8").splitlines()]
        return dict(answers=len(documents), cut=sum(not document["ended"] for document in documents))

    def pace(self) -> dict[str, Any]:
        """How many steps the minutes are worth here, and what the products of a step are worth of the machine's."""
        run = load_run(self.config, self.overrides)
        measured, rate = time_train_step(run, 3), product_rate(run.start.dtype)
        seconds, o = measured["seconds_per_step"]["median"], run.optimizer
        steps = max(round(60 * self.minutes / seconds), o.warmup_steps + o.decay_steps, 1)
        share = measured["model_flops_per_second"] / rate
        return dict(steps=steps, row_tokens_per_second=measured["tokens_per_second"], share_of_product_rate=share)

    def train(self, steps: int) -> dict[str, Any]:
        """The adapters; continues where it was stopped."""
        run = load_run(self.config, [*self.overrides, f"--config.steps={steps}"])
        summary = train(run, self.workdir / "drafter")
        if not summary["completed"]:
            raise StoppedError(f"stopped at step {summary['step']} of {steps}; the same command continues")
        read = summary["step"] * run.data.batch_size * run.data.length
        losses = read_losses(self.workdir / "drafter" / "metrics.jsonl")  # of all steps, before a resumption too
        return dict(row_tokens=read, loss=losses[-1][1])

    def export(self, target: Path) -> dict[str, Any]:
        """The model as it was read, with the adapters beside it, rounded: decoding then reads half of their bytes."""
        model, is_adapter = load_trained(self.workdir / "drafter"), lambda path, _: path[-1] in ADAPTER_NAMES
        rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), nnx.state(model, is_adapter))
        read = load_pretrained(self.ar, model.dtype)  # beside which older adapters may lie
        nnx.update(model, rounded, nnx.state(read, nnx.Not(is_adapter)))
        shutil.rmtree(target, ignore_errors=True)
        save_pretrained(model, target)
        return dict(directory=str(target))
