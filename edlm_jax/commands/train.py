"""Train a model as a config file says. Run it again with the same --workdir and it resumes where it stopped.

The work directory gets config.json, checkpoints/, metrics.jsonl and tensorboard/. With many processes (see launch/)
each runs this command, and the work directory is one that all of them share."""

import argparse
from typing import Any

from edlm_jax.commands.arguments import add_shared
from edlm_jax.commands.config import load_run
from edlm_jax.errors import StoppedError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_shared(parser, "config", "workdir", "wait")


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Returns the run's summary, in process 0 alone."""
    run = load_run(args.config, args.overrides)
    import jax

    from edlm_jax.parallel.processes import connect
    from edlm_jax.training.train import train

    connect(args.wait)
    summary = train(run, args.workdir)
    if not summary["completed"]:
        raise StoppedError(f"stopped at step {summary['step']} of {run.steps}; the same command continues")
    return summary if jax.process_index() == 0 else None


def show(result: dict[str, Any], args: argparse.Namespace) -> None:
    """Print the summary, one field a line."""
    for key, value in result.items():
        print(f"{key}: {value}")
