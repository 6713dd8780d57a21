"""Qwen2 and Qwen2.5: biases on q, k and v, and no switch for them."""

from collections.abc import Mapping
from typing import Any

from edlm_jax.errors import InputError
from edlm_jax.models.families.family import Family, sliding_window


class Qwen(Family):
    """A sliding window counts where `use_sliding_window` says so, from layer `max_window_layers` on."""

    def fields(self, config: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
        slides = config.get("use_sliding_window", False) and not config.get("layer_types")
        window = sliding_window({"sliding_window": 4096, **config}) if slides else None
        if window is not None and config.get("max_window_layers", 28) < config["num_hidden_layers"]:
            raise InputError(
                f"config.json: a sliding window of {window} tokens in the last layers is not supported; "
                "set sliding_window to null and max_position_embeddings to at most that window to use it without"
            )
        return super().fields(config, head_dim)


QWEN2 = Qwen("qwen2", "Qwen2ForCausalLM", qkv_bias=True)
