"""What a family of models has of its own, as a value: its fields in config.json, its switches, its tensors' names.

What all families share is elsewhere: their fields in spec.py, the layer in layer.py, tensors' names in
pretrained/layout.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edlm_jax.errors import InputError
from edlm_jax.models.config_json import size

if TYPE_CHECKING:
    from edlm_jax.models.spec import ModelSpec


@dataclass(frozen=True)
class Family:
    """The Llama-shaped decoder, and in its fields how a family differs from it."""

    model_type: str  # what config.json calls it; ModelSpec.family
    architecture: str
    absent: Mapping[str, Any] = field(default_factory=dict)  # what transformers takes for a key that config.json lacks
    qkv_bias: bool = False  # biases on q, k and v, always
    bias_flags: tuple[str, ...] = ()  # those it knows of attention_bias, on q, k, v and o, and mlp_bias
    qk_norm: bool = False  # norms of queries and keys

    def window(self, config: Mapping[str, Any]) -> int | None:
        """The sliding window that transformers would use in some layer; null or absent means what it means there."""
        return None

    def check(self, config: Mapping[str, Any]) -> None:
        """Refuses by name what the family's config.json may ask for and this decoder does not have."""
        other = sorted(set(config.get("layer_types") or ()) - {"full_attention"})
        if other:
            raise InputError(f"config.json: layer_types {', '.join(map(repr, other))} is not supported")
        window = self.window(config)
        if window is not None and window < size(config, "max_position_embeddings"):
            raise InputError(
                f"config.json: a sliding window of {window} tokens below max_position_embeddings is not supported; "
                "set sliding_window to null and max_position_embeddings to at most that window to use it without"
            )

    def to_hf(self, spec: "ModelSpec") -> dict[str, Any]:
        """What config.json says of a spec in this family alone."""
        values = {"attention_bias": spec.o_bias, "mlp_bias": spec.mlp_bias}
        return {name: values[name] for name in self.bias_flags}
