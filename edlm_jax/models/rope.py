"""Rotary position embeddings as transformers computes them: default, linear, llama3 and yarn.

Frequencies are made once in numpy float32; angles are float32 whatever the activations are, because bf16 cannot even
count to 300. The layout is "rotate half": entry i pairs with entry i + H/2.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edlm_jax.errors import InputError

_FIELDS = {  # of each kind, beside theta
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "original_length", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "original_length", "beta_fast", "beta_slow", "truncate", "attention_factor"),
}
_ORIGINAL = "original_max_position_embeddings"  # `original_length` in config.json; the others have one name


@dataclasses.dataclass(frozen=True)
class Rope:
    """RoPE of one model; the scaling numbers matter only to the kinds that use them."""

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    original_length: int = 0  # llama3, yarn: the context length before the scaling
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn: round the correction range to whole dimensions
    attention_factor: float = 1.0  # yarn: multiplies cos and sin

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], head_dim: int) -> "Rope":
        """Reads both forms: rope_theta + rope_scaling (before transformers 5) and rope_parameters (since)."""
        given = config.get("rope_scaling") or config.get("rope_parameters") or {}
        if any(isinstance(value, Mapping) for value in given.values()):
            raise InputError("config.json: rope_parameters differ per layer type, which is not supported")
        kind = given.get("rope_type") or given.get("type") or "default"
        if kind not in _FIELDS:
            raise InputError(f"config.json: RoPE type {kind!r} is not supported; supported are {', '.join(_FIELDS)}")
        partial = given.get("partial_rotary_factor", config.get("partial_rotary_factor"))
        if partial not in (None, 1, 1.0):
            raise InputError(f"config.json: partial_rotary_factor {partial} is not supported (only whole heads rotate)")
        if head_dim % 2:
            raise InputError(f"config.json: a head size of {head_dim} is odd, RoPE needs pairs")
        theta = given.get("rope_theta")
        theta = positive(config.get("rope_theta", cls.theta) if theta is None else theta, "rope_theta")
        numbers: dict[str, Any] = {}
        if "original_length" in _FIELDS[kind]:
            original = config.get(_ORIGINAL) or given.get(_ORIGINAL) or config.get("max_position_embeddings")
            numbers["original_length"] = int(positive(original, _ORIGINAL))
        if kind == "yarn":
            numbers |= _yarn(given, config.get("max_position_embeddings"), **numbers)
        rest = [name for name in _FIELDS[kind] if name not in numbers]
        numbers |= {name: positive(given.get(name), f"{kind} RoPE's {name}") for name in rest}
        return cls(theta, kind, **numbers)

    def respelled(self, config: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
        """What to change in a config.json that has both forms, where they differ: other readers may read the other."""
        old, new = ("rope_theta", "rope_scaling"), ("rope_parameters",)

        def without(form):
            try:
                return Rope.from_hf({name: value for name, value in config.items() if name not in form}, head_dim)
            except InputError:  # less than half of it
                return None

        both = config.get("rope_parameters") and any(config.get(name) for name in old)
        if not both or without(new) == without(old) == self:
            return {}
        parameters = self.to_hf()
        scaling = {name: value for name, value in parameters.items() if name != "rope_theta"}
        scaling = None if self.kind == "default" else scaling
        return dict(rope_theta=self.theta, rope_scaling=scaling, rope_parameters=parameters)

    def to_hf(self) -> dict[str, Any]:
        """The rope_parameters entry of a config.json."""
        names = {name: _ORIGINAL if name == "original_length" else name for name in _FIELDS[self.kind]}
        own = {theirs: getattr(self, ours) for ours, theirs in names.items()}
        return {"rope_type": self.kind, "rope_theta": self.theta} | own


def _yarn(given: Mapping[str, Any], longest: Any, original_length: int) -> dict[str, Any]:
    factor = given.get("factor")
    if factor is None:
        factor = positive(longest, "max_position_embeddings") / original_length
    factor, attention_factor = positive(factor, "yarn RoPE's factor"), given.get("attention_factor")
    if attention_factor is None:
        mscale, mscale_all = given.get("mscale"), given.get("mscale_all_dim")
        if not (mscale and mscale_all):
            mscale, mscale_all = 1, 0  # the latter's scale is one
        scale = lambda mscale: 0.1 * mscale * math.log(max(factor, 1)) + 1  # noqa: E731
        attention_factor = scale(mscale) / scale(mscale_all)
    return dict(
        factor=factor,
        beta_fast=float(given.get("beta_fast") or Rope.beta_fast),
        beta_slow=float(given.get("beta_slow") or Rope.beta_slow),
        truncate=bool(given.get("truncate", True)),
        attention_factor=float(attention_factor),
    )


def inverse_frequencies(rope: Rope, head_dim: int) -> tuple[np.ndarray, float]:
    """Radians per position of each of the head_dim / 2 pairs (float32), and the factor on cos and sin."""
    period = np.float32(rope.theta) ** (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim))
    base = np.float32(1) / period
    if rope.kind == "llama3":
        return _llama3_frequencies(rope, base), 1.0
    if rope.kind == "yarn":
        keep = np.float32(1) - _yarn_ramp(rope, head_dim)
        slowed = np.float32(1) / (np.float32(rope.factor) * period)
        return slowed * (np.float32(1) - keep) + base * keep, rope.attention_factor
    return base / np.float32(rope.factor), 1.0


def rotary_tables(positions_BT: jax.Array, rope: Rope, head_dim: int) -> tuple[jax.Array, jax.Array]:
    """cos_BTR and sin_BTR (float32, R = head_dim / 2): make them once, use them in every layer."""
    frequencies, scale = inverse_frequencies(rope, head_dim)
    frequencies = np.expand_dims(frequencies, tuple(range(positions_BT.ndim)))
    angles_BTR = positions_BT.astype(jnp.float32)[..., None] * frequencies
    return jnp.cos(angles_BTR) * scale, jnp.sin(angles_BTR) * scale


def rotate(x_BTNH: jax.Array, cos_BTR: jax.Array, sin_BTR: jax.Array) -> jax.Array:
    """Rotates the pairs (i, i + H/2) of every head by the tables' angles; float32 inside, x's dtype outside."""
    left, right = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos_BTR[..., None, :], sin_BTR[..., None, :]
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x_BTNH.dtype)


def positive(value: Any, name: str) -> float:
    """An entry of config.json that must be a positive number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise InputError(f"config.json: {name} must be a positive number, not {value!r}")
    return float(value)


def _llama3_frequencies(rope: Rope, base: np.ndarray) -> np.ndarray:
    """Slow pairs are slowed by the factor, fast ones kept, those between interpolated."""
    wavelength = np.float32(2 * math.pi) / base
    low, high = rope.low_freq_factor, rope.high_freq_factor
    smooth = (np.float32(rope.original_length) / wavelength - np.float32(low)) / np.float32(high - low)
    between = (np.float32(1) - smooth) * base / np.float32(rope.factor) + smooth * base
    slowed = np.where(wavelength > rope.original_length / low, base / np.float32(rope.factor), between)
    return np.where(wavelength < rope.original_length / high, base, slowed).astype(np.float32)


def _yarn_ramp(rope: Rope, head_dim: int) -> np.ndarray:
    """0 for pairs that turn often enough in the original context to be kept, 1 for those to be slowed."""

    def dimension(rotations: float) -> float:
        turns = math.log(rope.original_length / (rotations * 2 * math.pi))
        return head_dim * turns / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # no division by zero
    ramp = (np.arange(head_dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    return np.clip(ramp, np.float32(0), np.float32(1))
