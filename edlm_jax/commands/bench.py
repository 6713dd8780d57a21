"""Measure speed.

decode    tokens/s of AR and diffusion in one engine, and of transformers' generate where torch is installed: same
          prompts, whole calls, warm, generated tokens only; and seconds of one forward of 1, C and 2C columns. Or of
          --modes beside AR: columns of a forward, tokens per forward, and how many prompts get AR's tokens
serve     an engine under load, by --concurrency: tokens/s, seconds to the first token and of each further one; AR,
          diffusion in whole and half blocks, by load the best of these, self-speculation; or of --modes, and by load
          where they are several. A picture of it goes to --out
forward   milliseconds of a forward by columns and rows, with random weights (config.json alone is enough), beside
          what memory and what products allow on this machine
train     the jitted training step of a config on the devices that are here, with random weights and packed rows:
          median seconds of a step, tokens/s, MFU by formula, memory; attention alone against a whole mask; and the
          same step by torch, transformers and FlexAttention where torch and one GPU are
attention that of one layer alone, in tiles of several sizes, and torch's FlexAttention where torch and one GPU are
kernels   the error of attention's kernels on this machine, forward and backward; exit code 1: one is wrong
device    what is here, and its versions
all       these and the quickstart, each in a process of its own with a time limit, results as JSON in --out"""

import argparse
import functools
import operator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edlm_jax.commands.arguments import add_shared, check_numbers, chosen_dtype, read_numbers
from edlm_jax.commands.config import load_run
from edlm_jax.commands.evaluate import load_common_tokenizer
from edlm_jax.errors import InputError
from edlm_jax.reports.benchmark import SHOWN


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add("what", choices=tuple(_MEASURES), metavar="WHAT", help=f"one of {', '.join(_MEASURES)}")
    add_shared(parser, "config", required=False)
    add("--steps", type=int, default=20, metavar="N", help="of train: measured steps (20)")
    add("--model", metavar="DIR", help="of decode: a converted model; of forward and serve: any")
    add("--baseline", metavar="DIR", help="of decode: the AR model to compare with (default: the model itself)")
    add("--batch-sizes", default="1,8,32", metavar="N,N", help="of decode and forward: rows at a time (1,8,32)")
    what = "of decode: generated tasks; of serve: requests, or four a client where that is more (32)"
    add("--prompts", type=int, default=32, metavar="N", help=what)
    add("--max-new-tokens", type=int, default=64, metavar="N", help="of decode: at most this many a prompt (64)")
    what = "of decode: random prompts of so many tokens, and no end: every row then gets all its new tokens"
    add("--prompt-tokens", type=int, metavar="N", help=what)
    add("--thresholds", default="0.95,0.9", metavar="P,P", help="of decode's diffusion (0.95,0.9)")
    what = "of decode, beside AR, and of serve, between spaces: 'prompt_lookup self_speculation:drafts=3'"
    add("--modes", metavar="MODE MODE", help=what)
    what = "of serve: clients, each with one request at a time (1,2,4,8,16,32,64)"
    add("--concurrency", default="1,2,4,8,16,32,64", metavar="N,N", help=what)
    add("--repeats", type=int, default=5, metavar="N", help="times that each is measured (5)")
    add("--length", type=int, default=900, metavar="N", help="of kernels: columns of a stream (900)")
    what = "of all and serve: where results go (runs/accelerator)"
    add("--out", default="runs/accelerator", metavar="DIR", help=what)
    add("--minutes", type=float, default=25, metavar="N", help="of all: the most it may take (25)")
    add("--tiny", action="store_true", help="of all: tiny shapes, to try it on any machine")
    add_shared(parser, "dtype")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns what the command prints with --json."""
    check_numbers(args, "steps", "prompts", "max_new_tokens", "prompt_tokens", "repeats")
    check_numbers(args, "length", least=12)  # a block of the patterns that are tried
    check_numbers(args, "minutes", least=0)
    from edlm_jax.reports.report import describe_machine

    return _MEASURES[args.what](args) | describe_machine()


def exit_code(result: dict[str, Any]) -> int:
    """1 where a kernel is wrong, or no part of `all` was measured."""
    wrong = not all(result.get("right", {}).values())
    parts = result.get("parts", {})
    return int(wrong or bool(parts) and all(part["failed"] for part in parts.values()))


def show(result: dict[str, Any], args: argparse.Namespace) -> None:
    """Print the tables."""
    SHOWN[args.what](result)


def _device(args):
    import jax

    return dict(platform=jax.default_backend(), devices=[device.device_kind for device in jax.devices()])


def _kernels(args):
    from edlm_jax.benchmarks.kernel_errors import kernel_errors

    return kernel_errors(args.length)


def _all(args):
    from edlm_jax.benchmarks.accelerator import measure_all

    return dict(out=args.out, minutes=args.minutes, parts=measure_all(Path(args.out), args.minutes, args.tiny))


def _run(args):
    if not args.config:
        raise InputError(f"edlm bench {args.what} needs --config=NAME")
    return load_run(args.config, args.overrides)


def _attention(args):
    run = _run(args)
    from edlm_jax.benchmarks.attention import TILES, time_attention
    from edlm_jax.benchmarks.torch_peer import flex_attention_time, in_own_process

    peer = in_own_process(flex_attention_time, run, args.repeats, "cuda")  # first: then jax takes the GPU's memory
    return dict(config=args.config, attention=time_attention(run, TILES), flex_attention=peer)


def _train(args):
    run = _run(args)
    from edlm_jax.benchmarks.attention import time_attention
    from edlm_jax.benchmarks.torch_peer import in_own_process, time_torch_step
    from edlm_jax.benchmarks.training import time_train_step

    command = " ".join(["edlm bench train", f"--config={args.config}", f"--steps={args.steps}", *args.overrides])
    # First: then jax takes the GPU's memory.
    peer = in_own_process(time_torch_step, run, args.steps, "flex_attention", "cuda")
    result = dict(command=command, **time_train_step(run, args.steps))
    result |= dict(attention=time_attention(run), peer=peer)
    if peer.get("micro_batches") == result["micro_batches"]:  # else the one has fuller products than the other
        result["times_the_peer"] = result["tokens_per_second"] / peer["tokens_per_second"]
    return result


def _forward(args):
    if not args.model and not args.config:
        raise InputError("edlm bench forward needs --model=DIR, a directory with a config.json, or --config=NAME")
    from edlm_jax.benchmarks.forward import measure_forward
    from edlm_jax.pretrained import load_spec
    from edlm_jax.training.initial import planned_spec

    spec = load_spec(args.model) if args.model else planned_spec(_run(args).start)
    rows = read_numbers(args, "batch_sizes", int)
    found = measure_forward(spec, chosen_dtype(args), spec.stored_dtype or "float32", rows, args.repeats)
    return {"model": args.model or args.config, **found}


def _decode(args):
    if not args.model:
        raise InputError("edlm bench decode needs --model=DIR, a converted model")
    sizes = read_numbers(args, "batch_sizes", int)
    if max(sizes) > args.prompts:
        raise InputError(f"--batch-sizes: a batch of {max(sizes)} needs as many --prompts, not {args.prompts}")
    from edlm_jax.benchmarks.decoding import random_prompts, waiting
    from edlm_jax.benchmarks.forward import forward_seconds
    from edlm_jax.decoding import Decoder, check_settings, refuse_prompts
    from edlm_jax.evaluation.compare import compare_rates
    from edlm_jax.evaluation.tasks import load_tasks
    from edlm_jax.models.backend import describe
    from edlm_jax.pretrained import Text, load_pretrained, load_spec

    dtype, baseline = chosen_dtype(args), args.baseline or args.model
    paths = {"diffusion": args.model, "ar": baseline}
    specs = {side: load_spec(path) for side, path in paths.items()}
    spec, modes = specs["diffusion"], _modes_to_decode(args, specs["diffusion"])
    text = Text.of(spec, load_common_tokenizer(args.model, specs["ar"], args.baseline))
    if args.prompt_tokens:
        prompts, ends = random_prompts(spec, args.prompts, args.prompt_tokens), ()
    else:
        (task,) = load_tasks([{"kind": "tasks", "split": "test", "size": args.prompts}], text.tokenizer)
        prompts, ends = [question.prompt for question in task.questions], text.ends
    common = dict(limit=args.max_new_tokens, ends=ends)
    side = lambda name: "ar" if name == "ar" else "diffusion"  # noqa: E731
    for name, mode in modes.items():  # what can be refused is, before a weight is read
        check_settings(specs[side(name)], mode, **common)
        for reason in refuse_prompts(specs[side(name)], prompts, mode, **common).values():
            raise InputError(reason)
    decoders = {side: Decoder(load_pretrained(path, dtype=dtype), take=True) for side, path in paths.items()}
    ways = {name: functools.partial(decoders[side(name)], mode=mode, **common) for name, mode in modes.items()}
    columns = {name: decoders[side(name)].columns(mode) for name, mode in modes.items()}
    found = {name: way(prompts) for name, way in ways.items()}
    calls = {name: lambda batch, way=way: way(batch).tokens for name, way in ways.items()}
    peer, no_peer = _peer(baseline, dtype=dtype, max_new_tokens=args.max_new_tokens, eos_id=ends)
    rates = {size: compare_rates(calls | peer, prompts, size, args.repeats) for size in sizes}
    forwards = {name: [*map(operator.add, r.row_denoise_forwards, r.row_commit_forwards)] for name, r in found.items()}
    weights = decoders["diffusion"].weights
    C = spec.conversion.block_length if spec.conversion else max(columns.values())
    widths = sorted({1, *columns.values()}) if args.modes else (1, C, 2 * C)
    seconds = forward_seconds(weights, widths, cached=max(map(len, prompts)) + C)
    return {
        "model": args.model,
        "baseline": baseline,
        "dtype": dtype,
        "products": describe(weights.backend, dtype),
        "tokens_per_forward": {name: result.tokens_per_forward for name, result in found.items()},
        "columns": columns,
        "prompts": len(prompts),
        "prompts_as_ar": {name: sum(map(operator.eq, r.tokens, found["ar"].tokens)) for name, r in found.items()},
        "tokens_per_second": rates,
        "waiting": {size: {name: waiting(rows, size) for name, rows in forwards.items()} for size in sizes},
        "forward_seconds": seconds,
        "forward_ratio": {width: value / seconds[1] for width, value in seconds.items()},
        **({} if peer else {"transformers": f"not measured: {no_peer}"}),
    }


def _modes_to_decode(args, spec):
    """{name: mode}: AR, and beside it --modes, else what the model was trained for; these then are the args' modes."""
    from edlm_jax.decoding.modes import Autoregressive, Diffusion, default_mode, parse_mode

    thresholds = read_numbers(args, "thresholds", float, 0)
    if spec.conversion is None and not args.modes:
        raise InputError(f"{args.model} was never converted")
    if not args.modes and not spec.diffuses:
        args.modes = str(default_mode(spec))
    if args.modes:
        return {"ar": Autoregressive()} | {str(mode): mode for mode in map(parse_mode, args.modes.split())}
    modes = {f"diffusion {threshold:g}": Diffusion(threshold=threshold) for threshold in thresholds}
    separate = {f"diffusion {thresholds[0]:g}, separate commit": Diffusion(threshold=thresholds[0], commit="separate")}
    return {"ar": Autoregressive()} | modes | separate


def _peer(path, **common):
    """({name: its way}, why there is none)."""
    from edlm_jax.pretrained.released import architecture
    from edlm_jax.pretrained.source import find_directory, find_gguf, read_raw_config

    if find_spec("torch") is None:
        return {}, "torch is not installed"
    if find_gguf(path):
        return {}, f"transformers reads the directory that `edlm export --model={path}` writes: give --model that"
    directory = find_directory(path)
    if name := architecture(read_raw_config(directory)):
        return {}, f"transformers knows {name} by code beside its weights alone, which never runs"
    from edlm_jax.benchmarks.decoding import transformers_way

    return {"transformers, ar": transformers_way(directory, **common)}, ""


def _serve(args):
    if not args.model:
        raise InputError("edlm bench serve needs --model=DIR")
    concurrency = read_numbers(args, "concurrency", int)
    from edlm_jax.benchmarks.serving import measure_serving, trace_requests
    from edlm_jax.decoding import Decoder, Engine, check_settings, parse_mode
    from edlm_jax.pretrained import load_pretrained, load_spec, load_tokenizer
    from edlm_jax.reports.picture import plot_serving

    spec = load_spec(args.model)
    C = spec.conversion.block_length if spec.diffuses else 0
    blocks = ["diffusion", f"diffusion:block_length={C // 2}"] if C > 1 else []
    texts = args.modes.split() if args.modes else ["ar", *blocks, *["self_speculation"] * bool(spec.conversion)]
    modes = {text: parse_mode(text) for text in dict.fromkeys(texts)}
    for mode in modes.values():
        check_settings(spec, mode, limit=1)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)  # before anything is measured
    requests = trace_requests(load_tokenizer(args.model), args.prompts)
    decoder = Decoder(load_pretrained(args.model, dtype=chosen_dtype(args)), take=True)
    size = dict(slots=max(concurrency), columns=max(len(prompt) + answer for prompt, answer in requests))
    engines = {text: Engine(decoder, mode, **size) for text, mode in modes.items()}
    chosen = [text for text in modes if args.modes or text in ("ar", *blocks)]
    several = {"by load": Engine(decoder, [modes[text] for text in chosen], **size)} if len(chosen) > 1 else {}
    found = measure_serving(engines | several, requests, concurrency, args.prompts)
    plot_serving(found, out / "serve.png")
    paces = [asdict(pace) for engine in several.values() for pace in engine.paces]
    return dict(model=args.model, requests=args.prompts, serving=found, paces=dict(zip(chosen, paces, strict=False)))


_MEASURES = {"decode": _decode, "forward": _forward, "train": _train, "attention": _attention, "kernels": _kernels}
_MEASURES |= {"serve": _serve, "device": _device, "all": _all}
