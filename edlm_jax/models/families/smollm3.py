"""SmolLM3: Llama, but every fourth layer has no RoPE."""

from collections.abc import Mapping
from typing import Any

from edlm_jax.errors import InputError
from edlm_jax.models.families.family import Family, Kind, size


class SmolLM3(Family):
    """`no_rope_layers` has a 0 for each layer without RoPE."""

    def fields(self, config: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
        layers, every = size(config, "num_hidden_layers"), size(config, "no_rope_layer_interval")
        turns = config.get("no_rope_layers") or [int((i + 1) % every != 0) for i in range(layers)]
        if len(turns) < layers:
            raise InputError(f"config.json: no_rope_layers says something of {len(turns)} layers, there are {layers}")
        (whole,) = super().fields(config, head_dim)["kinds"]
        return {"kinds": tuple(whole if turn else Kind(rope=None) for turn in turns[:layers])}

    def to_hf(self, spec) -> dict[str, Any]:
        turns = [int(spec.kind(layer).rope is not None) for layer in range(spec.num_layers)]
        return super().to_hf(spec) | {"no_rope_layers": turns}


SMOLLM3 = SmolLM3(
    "smollm3",
    "SmolLM3ForCausalLM",
    absent=dict(no_rope_layer_interval=4, num_key_value_heads=4, rope_theta=2e6, tie_word_embeddings=True),
    bias_flags=("attention_bias", "mlp_bias"),
    refused=("use_sliding_window",),
)
