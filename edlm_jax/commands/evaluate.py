"""Measure a model.

  tasks     exact-match accuracy, tokens per forward and tokens/s at batch 1; a converted model at each threshold
  heldout   nats per token: next-token loss of an AR model, the diffusion bound of a converted one

With --baseline, the AR model stands beside the converted one in the same engine."""

import argparse
from pathlib import Path
from typing import Any

from edlm_jax.errors import InputError

GENERATED = ("tasks", "stdlib")  # held-out splits of sources that need no file
KIND_OF_SUFFIX = {".txt": "text", ".jsonl": "jsonl", ".parquet": "parquet"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--model", required=True, metavar="DIR", help="Hugging Face directory or hub id")
    parser.add_argument("--task", choices=("tasks", "heldout"), default="tasks", help="what to measure (tasks)")
    parser.add_argument("--baseline", metavar="DIR", help="AR model to compare with")
    parser.add_argument(
        "--data",
        metavar="SOURCE",
        help=f"{', '.join(GENERATED)}, or a file ({', '.join(KIND_OF_SUFFIX)}); tasks need prompt and response columns "
        "(default: tasks for tasks, stdlib for heldout)",
    )
    parser.add_argument("--count", type=int, default=256, metavar="N", help="generated tasks (256)")
    parser.add_argument("--thresholds", default="1,0.9,0.8", metavar="P,P", help="of a converted model (1,0.9,0.8)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="rows decoded at a time (32)")
    parser.add_argument("--timed-prompts", type=int, default=8, metavar="N", help="prompts timed at batch 1 (8)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="to compute in (bfloat16)")
    parser.add_argument("--markdown", action="store_true", help="print the tables in Markdown")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns the parts of a report that were measured."""
    thresholds = _parse_thresholds(args.thresholds)
    for name in ("count", "batch_size", "timed_prompts"):
        if vars(args)[name] < 1:
            raise InputError(f"--{name.replace('_', '-')} must be positive, not {vars(args)[name]}")
    source = _choose_source(args)
    from edlm_jax.evaluation.report import describe_machine
    from edlm_jax.pretrained import load_pretrained, load_tokenizer

    model, tokenizer = load_pretrained(args.model, dtype=args.dtype), load_tokenizer(args.model)
    baseline = load_pretrained(args.baseline, dtype=args.dtype) if args.baseline else None
    if baseline and not model.spec.conversion:
        raise InputError(f"{args.model} was never converted; --baseline is for a converted model")
    models = {"ar": baseline, "diffusion": model} if model.spec.conversion else {"ar": model}
    models = {mode: model for mode, model in models.items() if model is not None}
    measure = _measure_heldout if args.task == "heldout" else _measure_tasks
    return {"model": args.model, **measure(args, models, source, tokenizer, thresholds), **describe_machine()}


def show(result: dict[str, Any], args: argparse.Namespace) -> None:
    """Print the tables."""
    from edlm_jax.evaluation.report import print_report

    print_report(result, markdown=args.markdown)


def _measure_tasks(args, models, source, tokenizer, thresholds) -> dict[str, Any]:
    from edlm_jax.decoding import Decoder
    from edlm_jax.evaluation.compare import AR, compare_accuracy, compare_speed, diffusion_at, results_by_mode
    from edlm_jax.evaluation.tasks import load_tasks

    tasks = load_tasks([source], tokenizer)
    decodings = [how for how in (AR, *diffusion_at(thresholds)) if how["mode"] in models]
    decoders = {mode: Decoder(model) for mode, model in models.items()}
    ways = [(decoders[how["mode"]], how) for how in decodings]
    accuracy = compare_accuracy(ways, tasks, tokenizer, args.batch_size)
    return results_by_mode(decodings, accuracy, compare_speed(ways, tasks, tokenizer, args.timed_prompts))


def _measure_heldout(args, models, source, tokenizer, thresholds) -> dict[str, Any]:
    from edlm_jax.evaluation.heldout import heldout_config, heldout_loss

    c = heldout_config(next(reversed(models.values())).spec, source, batch_size=args.batch_size)
    patterns = {"ar": "causal", "diffusion": c.objective.pattern}
    losses = {mode: heldout_loss(model, c, tokenizer, pattern=patterns[mode]) for mode, model in models.items()}
    return {"heldout_loss": losses}


def _parse_thresholds(text: str) -> list[float]:
    try:
        thresholds = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--thresholds takes numbers separated by commas, not {text!r}") from None
    for threshold in thresholds:
        if not 0 <= threshold <= 1:
            raise InputError(f"--thresholds must lie in [0, 1], not {threshold}")
    return thresholds


def _choose_source(args: argparse.Namespace) -> dict[str, Any]:
    """The data source, as an entry of config.data.sources."""
    name = args.data or ("tasks" if args.task == "tasks" else "stdlib")
    if name == "tasks":
        return {"kind": "tasks", "split": "test", "size": args.count}
    if name == "stdlib":
        return {"kind": "stdlib", "split": "test"}
    suffix = Path(name).suffix
    if suffix not in KIND_OF_SUFFIX:
        raise InputError(f"--data={name} is neither {' nor '.join(GENERATED)} nor a {', '.join(KIND_OF_SUFFIX)} file")
    return {"kind": KIND_OF_SUFFIX[suffix], "path": name}
