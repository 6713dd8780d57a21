"""Decoding's kernels for CPUs, in C++ behind `jax.ffi`: products, attention over a cache, and the cache's update."""

from edlm_jax.parallel.cpu.attention import attend, write
from edlm_jax.parallel.cpu.library import available
from edlm_jax.parallel.cpu.product import Packed, pack, product

__all__ = ["Packed", "attend", "available", "pack", "product", "write"]
