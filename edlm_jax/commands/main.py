"""The `edlm` command line: picks a subcommand, turns bad input into one line and an exit code."""

import argparse
import contextlib
import importlib
import json
import logging
import os
import sys
import traceback
import warnings
from typing import Any

from absl import logging as absl_logging

from edlm_jax.errors import InputError, PartlyRefusedError, StoppedError

COMMANDS = {
    "train": "train a model as a config file says; resumes where it stopped",
    "convert": "the whole job: port an AR model, convert it, export it, evaluate both, report",
    "lossless": "port a model, train a drafter; AR and the modes that give AR's tokens, side by side",
    "generate": "complete prompts with a model, several tokens per forward pass",
    "evaluate": "task accuracy at several thresholds, speed, held-out loss, retrieval",
    "diagnose": "loss by position, calibration, order of decoding, variance of the gradient, weight drift",
    "study": "train and measure every cell of a study, with standard errors over seeds",
    "bench": "speed of decoding, serving, a forward, training and attention; are the kernels right?",
    "compile": "what a config would need on TPUs or GPUs: memory, collectives, FLOPs; needs none of them",
    "serve": "serve a model by OpenAI's HTTP interface",
    "export": "write a training run's checkpoint, or a GGUF file, as a Hugging Face directory",
}
BAD_INPUT, INTERRUPTED, FAILED, STOPPED = 2, 130, 1, 128 + 15


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are InputErrors: one line, printed in one place."""

    def error(self, message: str):
        raise InputError(f"{message} (see {self.prog} --help)")


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The parser of `edlm`, with all its subcommands and the arguments of this one."""
    parser = Parser(
        prog="edlm",
        description="Turns autoregressive language models into block-diffusion language models.",
        epilog="`edlm COMMAND --help` tells more about one command.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f"edlm_jax.commands.{name}")
        how = dict(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
        subparser = commands.add_parser(name, help=summary, description=module.__doc__, **how)
        subparser.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")
        subparser.add_argument("--debug", action="store_true", help="show a traceback when something fails")
        if name == command:  # others are not asked: their options may cost an import
            module.add_arguments(subparser)
        subparser.set_defaults(module=module, subparser=subparser)
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments, with `--config.a.b=value` gathered in .overrides for the commands that take a config."""
    command = next((word for word in argv if not word.startswith("-")), None)
    args, unknown = build_parser(command).parse_known_args(argv)
    takes_config = "config" in vars(args)
    args.overrides = [token for token in unknown if takes_config and token.startswith("--config.")]
    others = [token for token in unknown if token not in args.overrides]
    if others:
        args.subparser.error(f"unrecognized argument: {others[0]}")
    return args


def run(args: argparse.Namespace) -> int:
    """Run the command and print what it found, for people or with --json for machines; returns the exit code."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    absl_logging.get_absl_logger().addFilter(_keep)
    warnings.formatwarning = lambda message, *_, **__: f"edlm: warning: {message}\n"
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that torch is missing: we do not need it
    try:
        with _chatter_to_stderr() if args.json else contextlib.nullcontext():  # stdout carries the JSON object alone
            result = args.module.run(args)
    except PartlyRefusedError as error:
        _show(error.result, args)
        raise
    if result is None:  # another process of this run has it
        return 0
    _show(result, args)
    return args.module.exit_code(result) if hasattr(args.module, "exit_code") else 0


def _show(result: dict[str, Any], args: argparse.Namespace) -> None:
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        args.module.show(result, args)


@contextlib.contextmanager
def _chatter_to_stderr():
    """What is printed to stdout goes to stderr, also what C++ prints: gloo does so when processes connect."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def _keep(record: logging.LogRecord) -> bool:
    """Our own warnings (skipped documents), but not orbax's of what it does by itself."""
    return record.levelno >= logging.ERROR or "orbax" not in record.pathname


def main(argv: list[str] | None = None) -> int:
    """Entry point of `edlm`. Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted, 143 stopped by SIGTERM."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        return run(parse(argv))
    except InputError as error:
        return _report(BAD_INPUT, f"edlm: {error}", argv)
    except StoppedError as stopped:
        return _report(STOPPED, f"edlm: {stopped}", argv)
    except KeyboardInterrupt:
        return _report(INTERRUPTED, "edlm: interrupted", argv)
    except BrokenPipeError:  # `edlm ... | head`
        sys.stderr.close()
        return FAILED
    except (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        return _report(BAD_INPUT, f"edlm: {error.filename}: {error.strerror}; choose another path", argv)
    except Exception as error:
        first_line = next(iter(str(error).splitlines()), "")
        return _report(FAILED, f"edlm: {type(error).__name__}: {first_line} (--debug shows the traceback)", argv)


def _report(code: int, reason: str, argv: list[str]) -> int:
    if "--debug" in argv:
        traceback.print_exc()
    print(reason, file=sys.stderr)
    if code != STOPPED and "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
        # One of many processes failed. Its orderly end would wait for the others, which wait for it.
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    return code


def script() -> None:
    """`edlm` of the command line: `main`, then the end of the process."""
    code = main()
    if code == INTERRUPTED:  # at once: Python taken down under threads that still compile can crash
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    script()
