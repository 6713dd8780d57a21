"""The stages of `edlm lossless`. A drafter's training is a stage between them, and its mode one more in `_modes`."""

import json
import shutil
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edlm_jax.benchmarks.decoding import transformers_way
from edlm_jax.commands.stages import Stages
from edlm_jax.data.questions import questions
from edlm_jax.decoding import Decoder, Mode, check_settings
from edlm_jax.decoding.modes import Autoregressive, PromptLookup
from edlm_jax.evaluation.speed import compare_rates
from edlm_jax.pretrained import Text, load_pretrained, load_spec, load_tokenizer, save_pretrained
from edlm_jax.pretrained.chat import encode_prompt
from edlm_jax.reports.plot_lossless import plot_lossless
from edlm_jax.reports.report import describe_machine, write_report

STAGES = ("port", "speed")
DTYPE = "float32"  # in which a column's logits are the same bits however many columns a forward has


def measure(source: str, workdir: Path, prompts: int, max_new_tokens: int, repeats: int) -> dict[str, Any]:
    """Runs what is not finished; writes and returns the report."""
    setting = dict(model=source, prompts=prompts, max_new_tokens=max_new_tokens, repeats=repeats)
    stages = Stages(workdir / "stages.json", json.dumps(setting), STAGES)
    ported = stages.run("port", lambda: _port(source, workdir / "model"))
    speed = stages.run("speed", lambda: _speed(workdir / "model", prompts, max_new_tokens, repeats))
    report = {
        "name": Path(source).stem,
        **setting,
        **ported,
        **speed,
        "seconds": sum(stages.seconds.values()),
        "stage_seconds": stages.seconds,
        **describe_machine(),
    }
    plot_lossless(report, workdir / "report.png")
    write_report(report, workdir / "report.json")
    return report


def _modes() -> dict[str, Mode]:
    lookups = {f"prompt lookup, {drafts} drafts": PromptLookup(drafts=drafts) for drafts in (1, 2, 3)}
    return {"AR": Autoregressive(), **lookups}


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


def _speed(directory: Path, count: int, max_new_tokens: int, repeats: int) -> dict[str, Any]:
    """Tokens per forward and second of every mode, beside transformers' where torch is, and whose tokens are AR's."""
    spec, tokenizer = load_spec(directory), load_tokenizer(directory)
    decoder = Decoder(load_pretrained(directory, DTYPE), take=True)
    chat = bool(tokenizer.chat_template)
    prompts = [encode_prompt(tokenizer, question, chat) for question in questions("test", count)]
    ends, modes, ways, found = Text.of(spec, tokenizer).ends, _modes(), {}, {}
    for name, mode in modes.items():
        ways[name] = lambda batch, mode=mode: decoder(batch, mode, limit=max_new_tokens, ends=ends).tokens
        made = [decoder([prompt], mode, limit=max_new_tokens, ends=ends) for prompt in prompts]
        forwards = sum(one.denoise_forwards for one in made)
        tokens = [one.tokens[0] for one in made]
        found[name] = {"tokens": tokens, "tokens_per_forward": sum(map(len, tokens)) / max(forwards, 1)}
    if find_spec("torch") is not None:
        peer = transformers_way(str(directory), dtype=DTYPE, max_new_tokens=max_new_tokens, eos_id=ends)
        ways["transformers"] = peer
        found["transformers"] = {"tokens": [peer([prompt])[0] for prompt in prompts], "tokens_per_forward": 1.0}
    rates = compare_rates(ways, prompts, 1, repeats)
    reference = found["AR"]["tokens"]
    for name, entry in found.items():
        tokens = entry.pop("tokens")
        entry["same_text"] = sum(a == b for a, b in zip(tokens, reference, strict=True))
        entry["tokens_per_second"] = rates[name]
    return {"lossless": found, "new_tokens": sum(map(len, reference))}
