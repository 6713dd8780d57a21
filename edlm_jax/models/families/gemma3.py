"""Gemma 3's text models: local layers under a sliding window, with a RoPE of their own, between global ones.

Norms multiply by 1 + weight, and stand after the branches of a layer too; embeddings are scaled by the root of the
width. The models that also read pictures (Gemma3ForConditionalGeneration) have other files and are not read.
"""

import math
from collections.abc import Mapping
from typing import Any

from edlm_jax.errors import InputError
from edlm_jax.models.families.family import Family, Kind, size, sliding_window
from edlm_jax.models.rope import Rope

_LOCAL, _GLOBAL = "sliding_attention", "full_attention"


class Gemma3(Family):
    """config.json has each layer's type or, before that, `sliding_window_pattern`: one layer in so many is global."""

    def fields(self, config: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
        ropes = self._ropes(config, head_dim)
        kinds = {_LOCAL: Kind(ropes[_LOCAL], sliding_window(config)), _GLOBAL: Kind(ropes[_GLOBAL])}
        layers, every = size(config, "num_hidden_layers"), size(config, "sliding_window_pattern")
        types = config.get("layer_types") or [_LOCAL if (i + 1) % every else _GLOBAL for i in range(layers)]
        if len(types) != layers or set(types) - set(kinds):
            raise InputError(f"config.json: layer_types must be {layers} times {_LOCAL!r} or {_GLOBAL!r}")
        return dict(
            kinds=tuple(kinds[name] for name in types),
            centered_norms=True,
            branch_norms=True,
            embedding_scale=math.sqrt(size(config, "hidden_size")),
            query_scale=math.sqrt(head_dim / size(config, "query_pre_attn_scalar")),
        )

    def _ropes(self, config, head_dim):
        """As transformers reads both forms: rope_theta, rope_scaling and rope_local_base_freq, or rope_parameters."""
        given = config.get("rope_parameters") or {}
        if any(not isinstance(value, Mapping) for value in given.values()):
            raise InputError(f"config.json: rope_parameters must have an entry for {_LOCAL} and one for {_GLOBAL}")
        thetas = {_LOCAL: config.get("rope_local_base_freq", 1e4), _GLOBAL: config.get("rope_theta", 1e6)}
        scaling = {_GLOBAL: config.get("rope_scaling") or {}}
        longest, ropes = config.get("max_position_embeddings"), {}
        for name, theta in thetas.items():
            parameters = {"rope_theta": theta} | given.get(name, {}) | scaling.get(name, {})
            ropes[name] = Rope.from_hf(dict(rope_parameters=parameters, max_position_embeddings=longest), head_dim)
        return ropes

    def rope(self, spec) -> None:
        return None  # it has two

    def to_hf(self, spec) -> dict[str, Any]:
        by_reach = sorted(dict.fromkeys(spec.kinds), key=lambda kind: kind.window is None)
        near, far = by_reach[0], by_reach[-1]
        kinds = [spec.kind(layer) for layer in range(spec.num_layers)]
        return super().to_hf(spec) | {
            "layer_types": [_GLOBAL if kind == far and far.window is None else _LOCAL for kind in kinds],
            "query_pre_attn_scalar": round(spec.head_dim / spec.query_scale**2),
            "rope_parameters": {_LOCAL: near.rope.to_hf(), _GLOBAL: far.rope.to_hf()},
            "sliding_window": near.window or spec.max_length,
        }


GEMMA3 = Gemma3(
    "gemma3_text",
    "Gemma3ForCausalLM",
    absent={
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131072,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "tie_word_embeddings": True,
    },
    bias_flags=("attention_bias",),
    qk_norm=True,
    activation_key="hidden_activation",
    refused=("final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention"),
    names={"mlp_norm_D": "pre_feedforward_layernorm.weight"},
)
