"""Pretrained autoregressive language models in, block-diffusion language models out."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edlm_jax.decoding import generate
    from edlm_jax.errors import InputError
    from edlm_jax.pretrained import load_pretrained, save_pretrained

_EXPORTS = {
    "InputError": "edlm_jax.errors",
    "generate": "edlm_jax.decoding",
    "load_pretrained": "edlm_jax.pretrained",
    "save_pretrained": "edlm_jax.pretrained",
}
__all__ = ["InputError", "generate", "load_pretrained", "save_pretrained"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `edlm --help` does not wait for jax."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
