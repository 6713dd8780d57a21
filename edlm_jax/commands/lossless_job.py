"""The stages of `edlm lossless`: port, what trains a drafter on the model's own answers, and what comes of it."""

import argparse
import json
import shutil
import time
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from edlm_jax.benchmarks.decoding import transformers_way
from edlm_jax.benchmarks.forward import product_rate
from edlm_jax.benchmarks.training import time_train_step
from edlm_jax.commands.config import load_config, load_run
from edlm_jax.commands.main import parse
from edlm_jax.commands.responses import write_responses
from edlm_jax.commands.stages import Stages
from edlm_jax.data.questions import questions
from edlm_jax.decoding import Decoder, Mode, check_settings
from edlm_jax.decoding.generation import Generation, forwards_by_tokens
from edlm_jax.decoding.modes import Autoregressive, PromptLookup, QuadraticSpeculation, SelfSpeculation
from edlm_jax.errors import StoppedError
from edlm_jax.evaluation.speed import compare_rates
from edlm_jax.files import write_whole
from edlm_jax.pretrained import Text, load_pretrained, load_spec, load_tokenizer, save_pretrained
from edlm_jax.pretrained.chat import encode_prompt
from edlm_jax.reports.plot_lossless import plot_lossless
from edlm_jax.reports.report import describe_machine, read_losses, write_report
from edlm_jax.training.checkpoint import load_trained
from edlm_jax.training.config import to_json
from edlm_jax.training.train import train

DTYPE = "float32"  # in which a column's logits are the same bits however many columns a forward has
DRAFTER_STAGES = ("answers", "pace", "drafter", "export")
_ANSWERS = 20  # a minute of training: about as many tokens as training reads in that time
_LONGEST, _TOGETHER = 160, 24  # tokens of an answer; rows that are decoded at a time


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs what is not finished; writes and returns the report."""
    source, minutes, workdir, recipe = args.model, args.minutes, Path(args.workdir), (args.config, args.overrides)
    asked = dict(model=source, minutes=minutes)
    measured = dict(prompts=args.prompts, max_new_tokens=args.max_new_tokens, repeats=args.repeats)
    names = ("port", *(DRAFTER_STAGES if minutes else ()), "speed")
    stages, ar = Stages(workdir / "stages.json", source, names), workdir / "ar"
    ported, trained, model = stages.run("port", lambda: _port(source, ar)), {}, ar
    if minutes:
        model = workdir / "model"
        job = DrafterJob(ar, workdir / f"minutes_{minutes:g}", *recipe, minutes)
        given = {**asked, "config": to_json(load_config(*recipe))}
        clear = lambda: shutil.rmtree(job.workdir, ignore_errors=True)  # noqa: E731 (a drafter of other settings)
        trained |= stages.run("answers", job.answers, resumes=True, given=given, clear=clear)
        trained |= stages.run("pace", job.pace)
        trained |= stages.run("drafter", lambda: job.train(trained["steps"]), resumes=True)
        stages.run("export", lambda: job.export(model))
    speed = stages.run("speed", lambda: _speed(model, **measured), given={**asked, **measured})
    report = {
        "name": Path(source).stem,
        **asked,
        **measured,
        "overrides": args.overrides,
        **ported,
        "drafter": trained,
        **speed,
        "seconds": sum(stages.seconds.values()),
        "stage_seconds": stages.seconds,
        **describe_machine(),
    }
    plot_lossless(report, workdir / "report.png")
    write_report(report, workdir / "report.json")
    return report


def _modes(trained: bool) -> dict[str, Mode]:
    """What is compared. Where columns are dear one draft of the masks pays best, and lookup fills the rest."""
    modes = [Autoregressive(), *(PromptLookup(drafts=drafts) for drafts in (1, 2, 3))]
    if trained:
        modes += [SelfSpeculation(drafts=1), SelfSpeculation(drafts=1, lookup=2)]
        modes += [QuadraticSpeculation(drafts=1), QuadraticSpeculation(drafts=2)]
        modes += [QuadraticSpeculation(drafts=drafts, ahead=1, lookup=2) for drafts in (1, 2, 3)]
    return {_name(mode): mode for mode in modes}


def _name(mode: Mode) -> str:
    """prompt lookup: drafts 3, lookup 2"""
    options = ", ".join(f"{name} {value}" for name, value in vars(mode).items() if value)
    return f"{mode.name.replace('_', ' ')}: {options}" if options else "AR"


def _port(source: str, target: Path) -> dict[str, Any]:
    """The model as a directory, and the seconds to the first token that it says."""
    start = time.perf_counter()
    spec, tokenizer = load_spec(source), load_tokenizer(source)
    check_settings(spec, Autoregressive(), limit=1)
    model = load_pretrained(source, DTYPE)
    Decoder(model)([encode_prompt(tokenizer, "Hello", bool(tokenizer.chat_template))], Autoregressive(), limit=1)
    seconds = time.perf_counter() - start
    shutil.rmtree(target, ignore_errors=True)
    save_pretrained(model, target)
    return {"family": spec.family, "layers": spec.num_layers, "width": spec.width, "seconds_to_first_token": seconds}


def _speed(directory: Path, prompts: int, max_new_tokens: int, repeats: int) -> dict[str, Any]:
    """Tokens per forward and second of every mode, beside transformers' where torch is, and whose tokens are AR's."""
    spec, tokenizer = load_spec(directory), load_tokenizer(directory)
    decoder = Decoder(load_pretrained(directory, DTYPE), take=True)
    chat = bool(tokenizer.chat_template)
    asked = [encode_prompt(tokenizer, question, chat) for question in questions("test", prompts)]
    ends, made = Text.of(spec, tokenizer).ends, defaultdict(dict)  # name -> prompt -> what was decoded last

    def way(name, mode):
        def decode(batch):
            made[name][tuple(batch[0])] = result = decoder(batch, mode, limit=max_new_tokens, ends=ends)
            return result.tokens

        return decode

    ways = {name: way(name, mode) for name, mode in _modes(decoder.weights.gated).items()}
    if find_spec("torch") is not None:
        peer = transformers_way(str(directory), dtype=DTYPE, max_new_tokens=max_new_tokens, eos_id=ends)
        ways["transformers"] = peer
        made["transformers"] = {tuple(prompt): Generation(peer([prompt]), [], [], []) for prompt in asked}
    rates, found = compare_rates(ways, asked, 1, repeats), {}
    for name, rate in rates.items():
        results, reference = ([made[which][tuple(prompt)] for prompt in asked] for which in (name, "AR"))
        same = sum(a.tokens == b.tokens for a, b in zip(results, reference, strict=True))
        found[name] = dict(same_text=same, tokens_per_second=rate, tokens_per_forward=1.0, forwards_by_tokens=[])
        if forwards := sum(result.denoise_forwards for result in results):  # transformers' are not counted
            found[name]["tokens_per_forward"] = sum(len(result.tokens[0]) for result in results) / forwards
            accepted_at = (result.accepted_at[0] for result in results)
            found[name]["forwards_by_tokens"] = forwards_by_tokens(accepted_at, forwards)
    return {"lossless": found, "new_tokens": sum(len(result.tokens[0]) for result in reference)}


class DrafterJob:
    """The drafter's stages: the model answers, adapters of noisy columns learn from that.

    What a stage needs from an earlier one it reads from disk.
    """

    def __init__(self, ar: Path, workdir: Path, config: str, overrides: list[str], minutes: float):
        self.ar, self.workdir, self.minutes = ar, workdir, minutes
        self.asked, self.answered = workdir / "questions.txt", workdir / "answers.jsonl"
        source = dict(kind="jsonl", path=str(self.answered))
        self.config, self.overrides = config, [f"--config.init.path={ar}", f"--config.data.sources=({source},)"]
        self.overrides += overrides

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
        model = load_trained(self.workdir / "drafter")
        rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), nnx.state(model))
        nnx.update(model, rounded, nnx.state(load_pretrained(self.ar, model.dtype)))
        shutil.rmtree(target, ignore_errors=True)
        save_pretrained(model, target)
        return dict(directory=str(target))
