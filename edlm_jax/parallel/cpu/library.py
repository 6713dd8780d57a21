"""The compiled kernels beside this file, if the installation could build them: loaded and made known to XLA once."""

import ctypes
import functools
import importlib.util

import jax

TARGETS = ("edlm_product_of_rows", "edlm_adapted_product", "edlm_attention", "edlm_write", "edlm_norm")


@functools.cache
def available() -> bool:
    """Are there kernels, and does this jax take them? Without them decoding is XLA's: slower, and right as well."""
    found = importlib.util.find_spec("edlm_jax.parallel.cpu.kernels")
    if found is None or found.origin is None:
        return False
    try:
        library = ctypes.CDLL(found.origin)
        for name in TARGETS:
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    except (OSError, AttributeError, jax.errors.JaxRuntimeError):  # built for another machine or another jax
        return False
    return True
