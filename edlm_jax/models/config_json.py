"""Entries of a Hugging Face config.json, read strictly."""

from collections.abc import Mapping
from typing import Any

from edlm_jax.errors import InputError


def size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A positive whole number; the default stands for an explicit null, and nothing for an absent key."""
    value = config.get(key)
    if value is None and key in config and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"config.json: {key} must be a positive whole number, not {value!r}")
    return value


def positive(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise InputError(f"config.json: {key} must be a positive number, not {value!r}")
    return float(value)


def flag(config: Mapping[str, Any], key: str) -> bool:
    """true or false, which an absent key is."""
    value = config.get(key, False)
    if not isinstance(value, bool):
        raise InputError(f"config.json: {key} must be true or false, not {value!r}")
    return value
