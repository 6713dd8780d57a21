"""Decoding's kernels for CPUs, in C++ behind `jax.ffi`: products, norms, attention over a cache, the cache's update.

They lie beside this file, if the installation could build them, and are loaded and made known to XLA once.
"""

import ctypes
import functools
import importlib.util

import jax

from edlm_jax.parallel.cpu.attention import attend, write
from edlm_jax.parallel.cpu.product import Adapter, Low, Packed, Scale, pack, pack_low, product, rms_norm

__all__ = ["Adapter", "Low", "Packed", "Scale"]
__all__ += ["attend", "available", "instructions", "pack", "pack_low", "product", "rms_norm", "write"]

TARGETS = ("edlm_product_of_rows", "edlm_adapted_product", "edlm_attention", "edlm_write", "edlm_norm")


@functools.cache
def _library() -> ctypes.CDLL:
    """Raises OSError where there is none, or one of another kind of machine."""
    found = importlib.util.find_spec("edlm_jax.parallel.cpu.kernels")
    if found is None or found.origin is None:
        raise OSError("the installation built no kernels")
    return ctypes.CDLL(found.origin)


@functools.cache
def available() -> bool:
    """Are there kernels, and does this jax take them? Without them decoding is XLA's: slower, and right as well."""
    try:
        for name in TARGETS:
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(_library(), name)), platform="cpu")
    except (OSError, AttributeError, jax.errors.JaxRuntimeError):  # built for another machine or another jax
        return False
    return True


def instructions() -> str:
    """What the kernels are made of on this machine, by name."""
    name = _library().edlm_instructions
    name.restype = ctypes.c_char_p
    return name().decode()
