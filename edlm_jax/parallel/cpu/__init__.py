"""Decoding's kernels for CPUs, in C++ behind `jax.ffi`: products, norms, attention over a cache, the cache's update."""

from edlm_jax.parallel.cpu.attention import attend, write
from edlm_jax.parallel.cpu.library import available
from edlm_jax.parallel.cpu.norm import Scale, rms_norm
from edlm_jax.parallel.cpu.product import Packed, pack, product

__all__ = ["Packed", "Scale", "attend", "available", "pack", "product", "rms_norm", "write"]
