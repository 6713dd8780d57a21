"""How much faster a model decodes with exactly its own text: AR, and the modes that promise AR's tokens, on questions
that were held out. A GGUF file, a directory or a hub id is ported first.

The work directory gets model/ (a Hugging Face directory), report.json and report.png. Run it again with the same
--workdir after an interruption: finished stages are not repeated."""

import argparse
import sys
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--model", required=True, metavar="PATH", help="an AR model: directory, GGUF file or hub id")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="where the run keeps its files")
    parser.add_argument("--prompts", type=int, default=8, metavar="N", help="held-out questions that are timed (8)")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="at most this many a prompt (64)")
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="timings of each; the median counts (1)")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Port and measure; returns the report."""
    from edlm_jax.errors import InputError

    for name in ("prompts", "max_new_tokens", "repeats"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be positive, not {getattr(args, name)}")
    from edlm_jax.commands.lossless_job import measure

    report = measure(args.model, Path(args.workdir), args.prompts, args.max_new_tokens, args.repeats)
    print(f"report: {args.workdir}/report.json, report.png; model: {args.workdir}/model", file=sys.stderr)
    return report


def show(report: dict[str, Any], args: argparse.Namespace) -> None:
    """Print the report's tables."""
    from edlm_jax.reports.report import print_report

    print_report(report, markdown=args.markdown)
