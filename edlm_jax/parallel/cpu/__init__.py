"""Decoding's kernels for CPUs, in C++ behind `jax.ffi`: products, norms, attention over a cache, the cache's update."""

from edlm_jax.parallel.cpu.attention import attend, write
from edlm_jax.parallel.cpu.library import available, instructions
from edlm_jax.parallel.cpu.norm import Scale, rms_norm
from edlm_jax.parallel.cpu.product import Adapter, Low, Packed, pack, pack_low, product

__all__ = ["Adapter", "Low", "Packed", "Scale"]
__all__ += ["attend", "available", "instructions", "pack", "pack_low", "product", "rms_norm", "write"]
