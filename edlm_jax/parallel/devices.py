"""What is known of devices: one table of memory and peaks, and the platform that is being traced for."""

import os
from dataclasses import dataclass

import jax

_GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One device as jax counts them (vendors' data sheets). None: not looked up, so nothing is computed from it.

    Links are those inside a slice or a machine, all of a device's together, one way: of TPUs half of what Google's page
    of each generation calls the bidirectional bandwidth of a chip (docs.cloud.google.com/tpu/docs), of GPUs half of
    NVLink's or PCIe's.
    """

    memory_bytes: int | None = None
    peak_flops: float | None = None  # dense bfloat16 FLOP/s
    memory_rate: float | None = None  # bytes/s
    link_rate: float | None = None  # bytes/s
    per_chip: int = 1  # a TPU7x chip is two devices


# By jax's device_kind.
DEVICES = {
    "TPU v4": Device(32 * _GIB, 275e12, 1228e9, 300e9),
    "TPU v5 lite": Device(16 * _GIB, 197e12, 819e9, 200e9),
    "TPU v5": Device(95 * _GIB, 459e12, 2765e9, 600e9),
    "TPU v5p": Device(95 * _GIB, 459e12, 2765e9, 600e9),
    "TPU v6 lite": Device(32 * _GIB, 918e12, 1640e9, 400e9),
    "TPU7x": Device(96 * _GIB, 2307e12 / 2, 7380e9 / 2, 600e9 / 2, per_chip=2),
    "NVIDIA A100-SXM4-40GB": Device(40 * _GIB, 312e12, 1555e9, 300e9),
    "NVIDIA A100-SXM4-80GB": Device(80 * _GIB, 312e12, 2039e9, 300e9),
    "NVIDIA H100 80GB HBM3": Device(80 * _GIB, 989e12, 3350e9, 450e9),
    "NVIDIA H200": Device(141 * _GIB, 989e12, 4800e9, 450e9),
    "NVIDIA B200": Device(192 * _GIB, 2250e12, 8000e9, 900e9),
    "NVIDIA GeForce RTX 4090": Device(24 * _GIB, 165e12, 1008e9, 32e9),
    "NVIDIA L4": Device(24 * _GIB, 121e12, 300e9, 32e9),
    "Tesla T4": Device(16 * _GIB, 65e12, 300e9, 16e9),
}


def describe(kind: str) -> Device:
    """What the table says of jax's `device_kind`; of an unknown one, nothing."""
    return DEVICES.get(kind, Device())


def memory_of(device: jax.Device) -> int | None:
    """The bytes that a program may have on a device that is here; None where nobody says (CPU)."""
    return (device.memory_stats() or {}).get("bytes_limit") or describe(device.device_kind).memory_bytes


def default_dtype() -> str:
    """What to compute in unless told: on CPU bfloat16 is slower than float32, and its text is another sooner."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def platform() -> str:
    """What is being traced for: the devices of the mesh that is set, which need not be this machine's, or jax's own."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    found = device.platform if device is not None else jax.default_backend()
    return "gpu" if found == "cuda" else found  # one name for NVIDIA's
