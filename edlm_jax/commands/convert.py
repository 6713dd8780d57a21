"""The whole job: port an AR model, convert it to block diffusion, export it, evaluate both, write the report.

The work directory gets model/ (a Hugging Face directory), report.json and report.png beside what training writes.
Run it again with the same --workdir after an interruption: finished stages are not repeated."""

import argparse
from pathlib import Path
from typing import Any

from edlm_jax.commands.arguments import add_shared
from edlm_jax.commands.config import load_run
from edlm_jax.commands.evaluate import show  # noqa: F401 (the same tables)
from edlm_jax.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_shared(parser, "config", "workdir", "wait", "markdown")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Convert; returns the report."""
    run = load_run(args.config, args.overrides)
    from edlm_jax.parallel.processes import connect

    if (count := connect(args.wait)) > 1:
        raise InputError(
            f"edlm convert measures in one process, and {count} run it: run `edlm train` with the same --config and "
            "--workdir on all of them, then `edlm convert` on one, which finds the training finished"
        )
    from edlm_jax.commands.conversion import convert

    return convert(run, Path(args.workdir), name=Path(args.config.partition(":")[0]).stem)
