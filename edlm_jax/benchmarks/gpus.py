"""What XLA's GPU compiler asks of a GPU that is not there: its GpuTargetConfigProto, as text.

Sources: openxla/xla, xla/backends/gpu/target_config/specs (read at jax 0.10.2) for all but the RTX 4090, whose figures
are those of NVIDIA's "Ada GPU Architecture" white paper and of the compute capability table (8.9) in the CUDA C++
Programming Guide. The versions are those of the wheels that jax[cuda13] brings.
"""

from typing import Any

_TEXT = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared_per_core}
  shared_memory_per_block_optin: {shared_per_block}
  threads_per_core_limit: {threads_per_core}
  core_count: {cores}
  fpus_per_core: {units_per_core}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {l2_bytes}
  clock_rate_ghz: {clock_ghz}
  device_memory_size: {memory_bytes}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {capability[0]} minor: {capability[1]} }}
}}
platform_name: "CUDA"
runtime_version {{ major: 13 minor: 0 patch: 0 }}
dnn_version_info {{ major: 9 minor: 12 patch: 0 }}
device_description_str: "{kind}"
"""

# Sizes in bytes, rates in bytes/s. Cores are streaming multiprocessors; a block may ask for `shared_per_block` at most.
_HOPPER = dict(units_per_core=128, threads_per_core=2048, shared_per_core=233472, shared_per_block=232448)
_AMPERE = dict(units_per_core=64, threads_per_core=2048, shared_per_core=167936, shared_per_block=166912)
_ADA = dict(units_per_core=128, threads_per_core=1536, shared_per_core=102400, shared_per_block=101376)
_A100 = dict(capability=(8, 0), cores=108, l2_bytes=41943040, clock_ghz=1.41, **_AMPERE)
_H100 = dict(capability=(9, 0), cores=132, l2_bytes=52428800, clock_ghz=1.98, **_HOPPER)
_B200 = dict(capability=(10, 0), cores=148, l2_bytes=132644864, clock_ghz=1.965, **_HOPPER)
_4090 = dict(capability=(8, 9), cores=128, l2_bytes=75497472, clock_ghz=2.52, **_ADA)

# By the name that --topology takes; `kind` is jax's device_kind, by which parallel/devices.py knows one.
GPUS: dict[str, dict[str, Any]] = {
    "a100": dict(kind="NVIDIA A100-SXM4-80GB", memory_bytes=85100068864, bandwidth=2039040000000, **_A100),
    "h100": dict(kind="NVIDIA H100 80GB HBM3", memory_bytes=84942979072, bandwidth=3352320000000, **_H100),
    "h200": dict(kind="NVIDIA H200", memory_bytes=151397597184, bandwidth=4800000000000, **_H100),
    "b200": dict(kind="NVIDIA B200", memory_bytes=191514411008, bandwidth=7672320000000, **_B200),
    "rtx4090": dict(kind="NVIDIA GeForce RTX 4090", memory_bytes=25757220864, bandwidth=1008096000000, **_4090),
}


def target_config(name: str) -> str:
    """The description of a GPU of the table as the compiler reads it."""
    return _TEXT.format(**GPUS[name])


def shared_limit(kind: str) -> int:
    """Bytes of shared memory that a block on a device of jax's `kind` may ask for."""
    return next(gpu["shared_per_block"] for gpu in GPUS.values() if gpu["kind"] == kind)
