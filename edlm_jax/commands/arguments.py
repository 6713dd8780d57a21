"""Arguments that several commands take, and what is made of them."""

import argparse
import math
from typing import Any

from edlm_jax.errors import InputError, check_range

_OVERRIDES = """
Any field of the config file can be set on the command line:
  --config.steps=100 --config.optimizer.learning_rate=3e-5
edlm_jax/training/config.py lists every field with its meaning."""
_CONFIG = "a recorded config by its name (quickstart, studies/masking), or a Python file with get_config()"
_WAIT = "how long to wait at the start for the other processes of the run, if it has any (300)"
_TENSOR = "decode on all devices of this machine, of which N share the weights (1; on CPU one device decodes alone)"
_SHARED: dict[str, dict[str, Any]] = {
    "config": dict(required=True, metavar="NAME", help=_CONFIG),
    "workdir": dict(required=True, metavar="DIR", help="where the run keeps its files"),
    "wait": dict(type=float, default=300.0, metavar="SECONDS", help=_WAIT),
    "model": dict(required=True, metavar="PATH", help="Hugging Face directory, GGUF file or hub id"),
    "dtype": dict(choices=("bfloat16", "float32"), help="to compute in (float32 on CPU, bfloat16 elsewhere)"),
    "tensor": dict(type=int, metavar="N", help=_TENSOR),
    "markdown": dict(action="store_true", help="print the tables in Markdown"),
}


def add_shared(parser: argparse.ArgumentParser, *names: str, **changes) -> None:
    """Declare these arguments, with what is another than usual; overrides of a --config are gathered by `parse`."""
    for name in names:
        parser.add_argument(f"--{name}", **_SHARED[name] | changes)
    if "config" in names:
        parser.epilog = _OVERRIDES


def chosen_dtype(args: argparse.Namespace) -> str:
    """What was asked for, or what the device is good at."""
    from edlm_jax.parallel.devices import default_dtype

    return args.dtype or default_dtype()


def chosen_mesh(args: argparse.Namespace):
    """The mesh to decode on; None is one device: whoever has several GPUs or TPUs wants them to be used.

    CPU devices are parts of one processor, all of which one device uses, with kernels that know no mesh.
    """
    import jax

    from edlm_jax.parallel.mesh import decoding_mesh

    if args.tensor is None and (jax.default_backend() == "cpu" or jax.local_device_count() == 1):
        return None
    return decoding_mesh(1 if args.tensor is None else args.tensor)


def check_numbers(args: argparse.Namespace, *names: str, least: int = 1) -> None:
    """Raises InputError for one of these options that is less; one that was not given is fine."""
    for name in names:
        if vars(args)[name] is not None:
            check_range(f"--{name.replace('_', '-')}", vars(args)[name], least)


def read_numbers(args: argparse.Namespace, name: str, kind: type, least: float = 1, most: float = math.inf) -> list:
    """The numbers of an option, separated by commas, all of them in [least, most]."""
    option, text = f"--{name.replace('_', '-')}", vars(args)[name]
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} takes numbers separated by commas, not {text!r}") from None
    for number in numbers:
        check_range(option, number, least, most)
    return numbers
