"""Pretrained autoregressive language models in, block-diffusion language models out."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edlm_jax.decoding import generate
    from edlm_jax.errors import InputError
    from edlm_jax.pretrained import load_pretrained, save_pretrained

_EXPORTS = dict(InputError="errors", generate="decoding", load_pretrained="pretrained", save_pretrained="pretrained")
__all__ = ["InputError", "generate", "load_pretrained", "save_pretrained"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `edlm --help` does not wait for jax."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"edlm_jax.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
