"""What a command computes in, and on which devices it decodes."""

import argparse

from edlm_jax.errors import check_range


def add_dtype_argument(parser: argparse.ArgumentParser) -> None:
    """Declare --dtype."""
    how = "to compute in (float32 on CPU, bfloat16 elsewhere)"
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help=how)


def add_tensor_argument(parser: argparse.ArgumentParser) -> None:
    """Declare --tensor."""
    how = "decode on all devices of this machine, of which N share the weights (1; on CPU one device decodes alone)"
    parser.add_argument("--tensor", type=int, metavar="N", help=how)


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
