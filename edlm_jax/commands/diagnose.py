"""Look into a converted model: what it predicts where, in which order it decodes, how noisy its training is.

  loss by position in the block and calibration of confidence, of the model and, with --baseline, the AR model
  order of decoding inside blocks, at --threshold, where the source has prompts
  variance of the gradient by how noise levels are drawn, on one batch (--draws=0 leaves it out)
  with --baseline, weight drift of every layer, attention and FFN apart

A model whose blocks are causal inside is measured as `mars` decodes it: from left to right, all of a block masked. Such
a training draws no noise levels, so their variance is left out.

Writes diagnosis.json and diagnosis.png. --states=FILE.safetensors adds the residual streams of what was decoded, by
layer, position and forward: edlm_jax/diagnosis/states.py says how they lie there."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from edlm_jax.commands.arguments import add_shared, check_numbers, chosen_dtype
from edlm_jax.commands.evaluate import choose_source, load_common_tokenizer, whole
from edlm_jax.errors import InputError, check_range


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_shared(parser, "model")
    parser.add_argument("--baseline", metavar="DIR", help="AR model that it was made from")
    parser.add_argument("--data", metavar="SOURCE", help="tasks, stdlib, or a .txt, .jsonl or .parquet file (tasks)")
    parser.add_argument("--count", type=int, default=256, metavar="N", help="generated tasks, prompts decoded (256)")
    parser.add_argument("--threshold", type=float, default=0.9, metavar="P", help="of the order of decoding (0.9)")
    parser.add_argument("--draws", type=int, default=32, metavar="N", help="gradients of each way to draw noise (32)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="rows at a time (8)")
    add_shared(parser, "dtype")
    parser.add_argument("--out", default="diagnosis", metavar="DIR", help="where the two files go (diagnosis)")
    parser.add_argument("--states", metavar="FILE", help="residual streams of that decoding, a .safetensors file")
    parser.set_defaults(task="tasks")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, write the files; returns the report."""
    check_numbers(args, "count", "batch_size")
    check_numbers(args, "draws", least=0)
    if args.draws == 1:
        raise InputError("--draws=1 has no variance: give 0, or two and more")
    check_range("--threshold", args.threshold, 0, 1)
    source = choose_source(args)
    from edlm_jax.diagnosis.diagnose import diagnose
    from edlm_jax.pretrained import load_pretrained
    from edlm_jax.reports.picture import plot_diagnosis
    from edlm_jax.reports.report import describe_machine, write_report

    text, questions, refused = _prepare(args, source)
    if args.states and not questions:
        raise InputError("--states are those of a decoding: it needs a --data source with prompts")
    out, dtype, states = Path(args.out), chosen_dtype(args), Path(args.states) if args.states else None
    if states and states.is_dir():
        raise InputError(f"--states={states} is a directory; give the name of a file")
    for directory in [out, *([states.parent] if states else [])]:  # before hours of measuring
        directory.mkdir(parents=True, exist_ok=True)
    load = lambda path: load_pretrained(path, dtype=dtype, param_dtype="float32")  # noqa: E731
    baseline = load(args.baseline) if args.baseline else None
    how = dict(threshold=args.threshold, draws=args.draws, batch_size=args.batch_size, states=states)
    found = diagnose(load(args.model), baseline, source, questions, text, **how)
    report = {"model": args.model, "dtype": dtype, **found, "refused": refused, **describe_machine()}
    write_report(report, out / "diagnosis.json")
    plot_diagnosis(report, out / "diagnosis.png")
    print(f"diagnosis: {out / 'diagnosis.json'}, {out / 'diagnosis.png'}", file=sys.stderr)
    return whole(report)


def _prepare(args, source):
    """(text, questions, those refused), before the weights are read; no questions where the source has no prompts."""
    from edlm_jax.data.sources import open_source
    from edlm_jax.decoding.modes import Mars, trained_mode
    from edlm_jax.diagnosis.drift import check_comparable
    from edlm_jax.evaluation.tasks import choose_questions, load_tasks
    from edlm_jax.evaluation.tasks.exact_match import has_prompts
    from edlm_jax.pretrained import Text, load_spec

    spec = load_spec(args.model)
    if not spec.conversion:
        raise InputError(f"{args.model} was never converted: there are no blocks to look into")
    if not spec.diffuses:
        why = "has adapters that draft, its text is the AR model's: edlm bench decode --modes shows its drafts"
        raise InputError(f"{args.model} {why}")
    mode = trained_mode(spec.conversion.layout)
    if args.states and mode is Mars:
        raise InputError(f"--states are those of whole blocks, and {args.model} decodes by mars, whose masks slide")
    baseline = load_spec(args.baseline) if args.baseline else spec
    check_comparable(baseline, spec)
    text = Text.of(spec, load_common_tokenizer(args.model, baseline, args.baseline))
    if not has_prompts(open_source(source)):
        return text, [], []
    (task,) = load_tasks([source], text.tokenizer)
    task = dataclasses.replace(task, questions=task.questions[: args.count])
    (task,), refused = choose_questions([task], [(spec, mode())])
    return text, task.questions, refused


def show(report: dict[str, Any], args: argparse.Namespace) -> None:
    """Print the tables."""
    from edlm_jax.diagnosis.diagnose import diagnosis_rows
    from edlm_jax.reports.report import print_tables

    print_tables(diagnosis_rows(report))
