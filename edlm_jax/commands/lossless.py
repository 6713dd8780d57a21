"""How much faster a model decodes with exactly its own text: AR, and the modes that promise AR's tokens, on questions
that were held out. A GGUF file, a directory or a hub id is ported first; then the model answers other questions, and
for so many --minutes adapters learn to draft from its answers. The model itself does not change.

The work directory gets model/ (a Hugging Face directory with its adapters), report.json and report.png. Run it again
with the same --workdir after an interruption: finished stages are not repeated, training goes on."""

import argparse
import sys
from typing import Any

from edlm_jax.commands.arguments import add_shared, check_numbers
from edlm_jax.commands.config import load_config
from edlm_jax.commands.evaluate import show  # noqa: F401 (the same tables)
from edlm_jax.errors import check_range


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_shared(parser, "model", help="an AR model: directory, GGUF file or hub id")
    add_shared(parser, "workdir")
    what = "how long a drafter is trained, by the pace of its first steps (60); 0: none is"
    parser.add_argument("--minutes", type=float, default=60, metavar="N", help=what)
    add_shared(parser, "config", required=False, default="smollm2_lossless")
    parser.add_argument("--prompts", type=int, default=8, metavar="N", help="held-out questions that are timed (8)")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="at most this many a prompt (64)")
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="timings of each; the median counts (1)")
    add_shared(parser, "markdown")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the report."""
    check_range("--minutes", args.minutes, 0, 10**6)
    check_numbers(args, "prompts", "max_new_tokens", "repeats")
    load_config(args.config, args.overrides)  # before anything is ported
    from edlm_jax.commands.lossless_job import measure

    report = measure(args)
    print(f"report: {args.workdir}/report.json, report.png; model: {args.workdir}/model", file=sys.stderr)
    return report
