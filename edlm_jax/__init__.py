"""Pretrained autoregressive language models in, block-diffusion language models out."""

import importlib

_EXPORTS = {
    "InputError": "edlm_jax.errors",
    "generate": "edlm_jax.decoding",
    "load_pretrained": "edlm_jax.pretrained",
    "save_pretrained": "edlm_jax.pretrained",
}
__all__ = list(_EXPORTS)


def __getattr__(name):
    """Import on first use, so that `edlm --help` does not wait for jax."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__():
    return sorted([*globals(), *_EXPORTS])
