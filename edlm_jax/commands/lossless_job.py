"""The stages of `edlm lossless`: port, what trains a drafter (drafter.py), and what comes of it."""

import shutil
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edlm_jax.benchmarks.decoding import transformers_way
from edlm_jax.commands import drafter
from edlm_jax.commands.config import load_config
from edlm_jax.commands.stages import Stages
from edlm_jax.data.questions import questions
from edlm_jax.decoding import Decoder, Mode, check_settings, refuse_prompts
from edlm_jax.decoding.generation import Generation, forwards_by_tokens
from edlm_jax.decoding.modes import Autoregressive, PromptLookup, QuadraticSpeculation, SelfSpeculation
from edlm_jax.errors import InputError
from edlm_jax.evaluation.speed import compare_rates
from edlm_jax.pretrained import Text, load_pretrained, load_spec, load_tokenizer, save_pretrained
from edlm_jax.pretrained.chat import encode_prompt
from edlm_jax.reports.plot_lossless import plot_lossless
from edlm_jax.reports.report import describe_machine, write_report
from edlm_jax.training.config import to_json

DTYPE = "float32"  # in which a column's logits are the same bits however many columns a forward has


@dataclass(frozen=True)
class Timing:
    """What is decoded, and how often; with another one only the speeds are measured again."""

    prompts: int  # held-out questions
    max_new_tokens: int  # of each
    repeats: int


def measure(
    source: str, workdir: Path, config: str, overrides: Sequence[str], minutes: float, timing: Timing
) -> dict[str, Any]:
    """Runs what is not finished; writes and returns the report.

    Args:
      source: the AR model.
      config: by which a drafter is trained, with its `overrides`.
      minutes: how long it is trained; 0: there is none.
    """
    asked = dict(model=source, minutes=minutes)
    names = ("port", *(drafter.STAGES if minutes else ()), "speed")
    stages, model, trained = Stages(workdir / "stages.json", source, names), workdir / "ar", {}
    ported = stages.run("port", lambda: _port(source, workdir / "ar"))
    _asked(workdir / "ar", timing)  # refuses before a drafter is trained
    if minutes:
        model = workdir / "model"
        job = drafter.DrafterJob(workdir / "ar", workdir / f"minutes_{minutes:g}", config, overrides, minutes)
        trained = job.run(stages, {**asked, "config": to_json(load_config(config, overrides))}, model)
    speed = stages.run("speed", lambda: _speed(model, timing), given={**asked, **asdict(timing)})
    report = {
        "name": Path(source).stem,
        **asked,
        **asdict(timing),
        "overrides": overrides,
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


def _asked(directory: Path, timing: Timing) -> list[list[int]]:
    """The prompts that are timed, which the model can answer in so many tokens."""
    spec, tokenizer = load_spec(directory), load_tokenizer(directory)
    chat, texts = bool(tokenizer.chat_template), questions("test", timing.prompts)
    asked = [encode_prompt(tokenizer, question, chat) for question in texts]
    for reason in refuse_prompts(spec, asked, Autoregressive(), limit=timing.max_new_tokens).values():
        raise InputError(reason)
    return asked


def _speed(directory: Path, timing: Timing) -> dict[str, Any]:
    """Tokens per forward and second of every mode, beside transformers' where torch is, and whose tokens are AR's."""
    spec, tokenizer = load_spec(directory), load_tokenizer(directory)
    decoder = Decoder(load_pretrained(directory, DTYPE), take=True)
    asked = _asked(directory, timing)
    ends, made = Text.of(spec, tokenizer).ends, defaultdict(dict)  # name -> prompt -> what was decoded last

    def way(name, mode):
        def decode(batch):
            made[name][tuple(batch[0])] = result = decoder(batch, mode, limit=timing.max_new_tokens, ends=ends)
            return result.tokens

        return decode

    ways = {name: way(name, mode) for name, mode in _modes(decoder.weights.gated).items()}
    if find_spec("torch") is not None:
        peer = transformers_way(str(directory), dtype=DTYPE, max_new_tokens=timing.max_new_tokens, eos_id=ends)
        ways["transformers"] = peer
        made["transformers"] = {tuple(prompt): Generation(peer([prompt]), [], [], []) for prompt in asked}
    rates, found = compare_rates(ways, asked, 1, timing.repeats), {}
    for name, rate in rates.items():
        results, reference = ([made[which][tuple(prompt)] for prompt in asked] for which in (name, "AR"))
        same = sum(a.tokens == b.tokens for a, b in zip(results, reference, strict=True))
        found[name] = dict(same_text=same, tokens_per_second=rate, **_by_forward(results))
    return {"lossless": found, "new_tokens": sum(len(result.tokens[0]) for result in reference)}


def _by_forward(results: Sequence[Generation]) -> dict[str, Any]:
    """Tokens per forward, and how many forwards settled none, one, two and so on; transformers' are not counted."""
    forwards = sum(result.denoise_forwards for result in results)
    if not forwards:
        return dict(tokens_per_forward=1.0, forwards_by_tokens=[])
    tokens = sum(len(result.tokens[0]) for result in results)
    counts = forwards_by_tokens((result.accepted_at[0] for result in results), forwards)
    return dict(tokens_per_forward=tokens / forwards, forwards_by_tokens=counts)
