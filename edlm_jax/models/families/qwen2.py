"""Qwen2 and Qwen2.5: biases on q, k and v, and no switch for them."""

from collections.abc import Mapping
from typing import Any

from edlm_jax.models.families.family import Family


class Qwen(Family):
    """A sliding window counts where `use_sliding_window` says so, from layer `max_window_layers` on."""

    def window(self, config: Mapping[str, Any]) -> int | None:
        if not config.get("use_sliding_window", False) or config.get("layer_types"):
            return None
        unused = config.get("max_window_layers", 28) >= config["num_hidden_layers"]
        return None if unused else config.get("sliding_window", 4096)


QWEN2 = Qwen("qwen2", "Qwen2ForCausalLM", qkv_bias=True)
