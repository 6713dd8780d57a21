"""Devices that are not here, for compiling alone: TPU topologies such as v5p:4x4x4, GPUs such as h100:8."""

import os

import jax

from edlm_jax.benchmarks.gpus import GPUS, target_config
from edlm_jax.errors import InputError


def topology_devices(topology: str, num_slices: int = 1, hosts: int = 1) -> list[jax.Device]:
    """The devices of `num_slices` TPU topologies, or of `hosts` machines with GPUs.

    Raises InputError where the name is unknown or its compiler is not installed.
    """
    gpu, _, each = topology.partition(":")
    if gpu not in GPUS:
        if hosts > 1:
            raise InputError("--hosts is of GPUs; a TPU topology names all chips of a slice: see --num_slices")
        slices = dict(num_slices=num_slices) if num_slices > 1 else {}
        return _devices(topology, "tpu", "a TPU", **slices)
    if num_slices > 1:
        raise InputError(f"--num_slices is of TPUs; for several machines with GPUs: --topology={topology} --hosts=N")
    if not each.isdigit() or int(each) < 1:
        raise InputError(f"--topology={topology}: say how many of a machine, as in {gpu}:8")
    shape = f"1x{hosts}x{each}"  # NVLink domains x hosts x devices of a host
    return _devices(topology, "cuda", "a GPU", topology=shape, target_config=target_config(gpu))


def _devices(name: str, platform: str, what: str, **settings) -> list[jax.Device]:
    # Or libtpu looks for the machine it is not on, and refuses to compile beside a run.
    tpu = dict(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    for key, value in tpu.items():
        os.environ.setdefault(key, value)
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(name, platform=platform, **settings).devices)
    except Exception as error:
        reason = " ".join(str(error).split())
        if platform in reason.lower() and ("plugin" in reason.lower() or "libtpu" in reason or "backend" in reason):
            brings = f"pip install 'edlm_jax[{platform}]' brings it ({reason[:120]})"
            raise InputError(f"no compiler for {what} here: {brings}") from None
        raise InputError(f"--topology={name}: {reason[:200]}") from None
