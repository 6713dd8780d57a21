"""The stages of `edlm lossless`: port, then the model answers and adapters of noisy columns learn from that, and what
comes of it."""

import argparse
import functools
import json
import operator
import shutil
import time
from collections import defaultdict
from dataclasses import dataclass
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
from edlm_jax.decoding import Decoder, Mode, check_settings, refuse_prompts
from edlm_jax.decoding.generation import Generation, forwards_by_tokens
from edlm_jax.decoding.modes import Autoregressive, PromptLookup, QuadraticSpeculation, SelfSpeculation
from edlm_jax.errors import InputError, StoppedError
from edlm_jax.evaluation.compare import compare_rates
from edlm_jax.files import write_whole
from edlm_jax.models.lora import ADAPTER_NAMES
from edlm_jax.pretrained import Text, load_pretrained, load_spec, load_tokenizer, save_pretrained
from edlm_jax.pretrained.chat import encode_prompt
from edlm_jax.reports.picture import plot_lossless
from edlm_jax.reports.report import describe_machine, read_losses, write_report
from edlm_jax.training.checkpoint import load_trained
from edlm_jax.training.config import to_json
from edlm_jax.training.run import Run
from edlm_jax.training.train import train

DTYPE = "float32"  # in which a column's logits are the same bits however many columns a forward has
DRAFTER = ("answers", "pace", "drafter", "export")  # stages, where there is to be one
_ANSWERS = 20  # a minute of training: about as many tokens as training reads in that time
_LONGEST, _TOGETHER = 160, 24  # tokens of an answer; rows that are decoded at a time


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs what is not finished, by the options of `edlm lossless`; writes and returns the report."""
    workdir, asked = Path(args.workdir), dict(model=args.model, minutes=args.minutes)
    timing = dict(prompts=args.prompts, max_new_tokens=args.max_new_tokens, repeats=args.repeats)
    stages = Stages(workdir / "stages.json", args.model, ("port", *(DRAFTER if args.minutes else ()), "speed"))
    model, trained = workdir / "ar", {}
    ported = stages.run("port", lambda: _port(args.model, workdir / "ar"))
    _asked(workdir / "ar", args)  # refuses before a drafter is trained
    if args.minutes:
        model, given = workdir / "model", asked | dict(config=to_json(load_config(args.config, args.overrides)))
        left = workdir / f"minutes_{args.minutes:g}"
        trained = DrafterJob(workdir / "ar", left, args.config, args.overrides, args.minutes).run(stages, given, model)
    speed = stages.run("speed", lambda: _speed(model, args), given=asked | timing)
    report = dict(name=Path(args.model).stem, **asked, **timing, overrides=args.overrides, **ported, drafter=trained)
    report |= dict(**speed, seconds=sum(stages.seconds.values()), stage_seconds=stages.seconds, **describe_machine())
    plot_lossless(report, workdir / "report.png")
    write_report(report, workdir / "report.json")
    return report


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


@dataclass
class DrafterJob:
    """The work of each stage of a drafter; what it needs from an earlier one it reads from disk."""

    ar: Path  # the model that is to be drafted for, a directory
    workdir: Path
    config: str  # of the training, a file or a recorded config's name
    overrides: list[str]
    minutes: float  # how long it may take, by the pace of the first steps

    def run(self, stages: Stages, given: Any, target: Path) -> dict[str, Any]:
        """All stages, as far as they are not finished, to a model in `target`; returns what the report says of them.

        `given` is what they depend on: once it is another they run again, from nothing.
        """
        clear = functools.partial(shutil.rmtree, self.workdir, ignore_errors=True)  # of a drafter of other settings
        found = dict(stages.run("answers", self.answers, resumes=True, given=given, clear=clear))
        found |= stages.run("pace", self.pace)
        found |= stages.run("drafter", lambda: self.train(found["steps"]), resumes=True)
        stages.run("export", lambda: self.export(target))
        return found

    def answers(self) -> dict[str, Any]:
        """The model's own greedy answers to questions of the train split; continues where it was stopped."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        file = self.workdir / "questions.txt"
        asked = questions("train", max(round(_ANSWERS * self.minutes), 1))
        write_whole(file, "".join(f"{question}\n" for question in asked))
        what = [f"--model={self.ar}", f"--prompts-file={file}", f"--out={self._answered}", "--mode=ar"]
        what += [f"--max-new-tokens={_LONGEST}", f"--batch-size={_TOGETHER}"]
        chat = ["--chat"] if load_tokenizer(self.ar).chat_template else []
        write_responses(parse(["generate", *what, *chat]))
        documents = [json.loads(line) for line in self._answered.read_text(encoding="utf-8").splitlines()]
        return dict(answers=len(documents), cut=sum(not document["ended"] for document in documents))

    def pace(self) -> dict[str, Any]:
        """How many steps the minutes are worth here, and what the products of a step are worth of the machine's."""
        run = self._run_of()
        measured, rate = time_train_step(run, 3), product_rate(run.start.dtype)
        seconds, o = measured["seconds_per_step"]["median"], run.optimizer
        steps = max(round(60 * self.minutes / seconds), o.warmup_steps + o.decay_steps, 1)
        share = measured["model_flops_per_second"] / rate
        return dict(steps=steps, row_tokens_per_second=measured["tokens_per_second"], share_of_product_rate=share)

    def train(self, steps: int) -> dict[str, Any]:
        """The adapters; continues where it was stopped."""
        run = self._run_of(f"--config.steps={steps}")
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

    @property
    def _answered(self) -> Path:
        return self.workdir / "answers.jsonl"

    def _run_of(self, *changes: str) -> Run:
        own = [
            f"--config.init.path={self.ar}",
            f"--config.data.sources=({dict(kind='jsonl', path=str(self._answered))},)",
        ]
        return load_run(self.config, [*own, *self.overrides, *changes])


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


def _asked(directory: Path, args: argparse.Namespace) -> list[list[int]]:
    """The prompts that are timed, which the model can answer in so many tokens."""
    spec, tokenizer = load_spec(directory), load_tokenizer(directory)
    chat, texts = bool(tokenizer.chat_template), questions("test", args.prompts)
    asked = [encode_prompt(tokenizer, question, chat) for question in texts]
    for reason in refuse_prompts(spec, asked, Autoregressive(), limit=args.max_new_tokens).values():
        raise InputError(reason)
    return asked


def _speed(directory: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Tokens per forward and second of every mode, beside transformers' where torch is, and whose tokens are AR's."""
    decoder, asked = Decoder(load_pretrained(directory, DTYPE), take=True), _asked(directory, args)
    ends = Text.of(load_spec(directory), load_tokenizer(directory)).ends
    made: dict[str, dict] = defaultdict(dict)  # name -> prompt -> what was decoded last

    def way(name, mode):
        def decode(batch):
            made[name][tuple(batch[0])] = result = decoder(batch, mode, limit=args.max_new_tokens, ends=ends)
            return result.tokens

        return decode

    ways = {name: way(name, mode) for name, mode in _modes(decoder.weights.gated).items()}
    if find_spec("torch") is not None:
        peer = transformers_way(str(directory), dtype=DTYPE, max_new_tokens=args.max_new_tokens, eos_id=ends)
        ways["transformers"] = peer
        made["transformers"] = {tuple(prompt): Generation(peer([prompt]), [], [], []) for prompt in asked}
    rates, found = compare_rates(ways, asked, 1, args.repeats), {}
    rows = {name: Generation.joined([of[tuple(prompt)] for prompt in asked]) for name, of in made.items()}
    for name, rate in rates.items():
        same, forwards = sum(map(operator.eq, rows[name].tokens, rows["AR"].tokens)), rows[name].denoise_forwards
        found[name] = dict(same_text=same, tokens_per_second=rate, tokens_per_forward=1.0, forwards_by_tokens=[])
        if forwards:  # transformers' are not counted
            by_tokens = forwards_by_tokens(rows[name].accepted_at, forwards)
            found[name] |= dict(tokens_per_forward=rows[name].tokens_per_forward, forwards_by_tokens=by_tokens)
    return {"lossless": found, "new_tokens": sum(map(len, rows["AR"].tokens))}
