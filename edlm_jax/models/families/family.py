"""What a family of models has of its own, as a value: its fields in config.json, its switches, its tensors' names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edlm_jax.errors import InputError
from edlm_jax.models.rope import Rope

if TYPE_CHECKING:
    from edlm_jax.models.spec import ModelSpec


@dataclass(frozen=True)
class Kind:
    """What a layer's attention knows of positions."""

    rope: Rope | None  # None: nothing turns
    window: int | None = None  # only what is less than so many positions away is seen


@dataclass(frozen=True)
class Family:
    """How a family differs from the Llama-shaped decoder that all share (spec.py, layer.py, pretrained/layout.py)."""

    model_type: str  # what config.json calls it; ModelSpec.family
    architecture: str
    absent: Mapping[str, Any] = field(default_factory=dict)  # what transformers takes for a key that config.json lacks
    qkv_bias: bool = False  # biases on q, k and v, always
    bias_flags: tuple[str, ...] = ()  # those it knows of attention_bias, on q, k, v and o, and mlp_bias
    qk_norm: bool = False  # norms of queries and keys
    activation_key: str = "hidden_act"
    refused: tuple[str, ...] = ()  # keys of config.json that ask for what this decoder lacks
    names: Mapping[str, str] = field(default_factory=dict)  # of tensors that pretrained/layout.py calls otherwise

    def fields(self, config: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
        """The spec's fields that families read each in their way, `kinds` among them; refuses what we lack."""
        other = sorted(set(config.get("layer_types") or ()) - {"full_attention"})
        if other:
            raise InputError(f"config.json: layer_types {', '.join(map(repr, other))} is not supported")
        return {"kinds": (Kind(Rope.from_hf(config, head_dim)),)}

    def rope(self, spec: "ModelSpec") -> Rope | None:
        """The one that config.json has in either of its forms (see `Rope.respelled`)."""
        return next((kind.rope for kind in spec.kinds if kind.rope), None)

    def to_hf(self, spec: "ModelSpec") -> dict[str, Any]:
        """What `fields` reads, and the switches that this family has."""
        values, rope = {"attention_bias": spec.o_bias, "mlp_bias": spec.mlp_bias}, self.rope(spec)
        return {name: values[name] for name in self.bias_flags} | ({"rope_parameters": rope.to_hf()} if rope else {})


def sliding_window(config: Mapping[str, Any]) -> int | None:
    """That of config.json; null means none, and so does one that all positions fit into."""
    if config.get("sliding_window") is None:
        return None
    window = size(config, "sliding_window")
    return None if window >= size(config, "max_position_embeddings") else window


def size(config: Mapping[str, Any], key: str) -> int:
    """A positive whole number."""
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"config.json: {key} must be a positive whole number, not {value!r}")
    return value


def flag(config: Mapping[str, Any], key: str) -> bool:
    """true or false, which an absent key is."""
    value = config.get(key, False)
    if not isinstance(value, bool):
        raise InputError(f"config.json: {key} must be true or false, not {value!r}")
    return value
