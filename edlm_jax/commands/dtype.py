"""The dtype that a command computes in."""

import argparse


def add_dtype_argument(parser: argparse.ArgumentParser) -> None:
    """Declare --dtype."""
    how = "to compute in (float32 on CPU, bfloat16 elsewhere)"
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help=how)


def chosen_dtype(args: argparse.Namespace) -> str:
    """What was asked for, or what the device is good at."""
    from edlm_jax.parallel.devices import default_dtype

    return args.dtype or default_dtype()
