"""Mistral: a sliding window in every layer, of 4096 tokens where config.json does not say; null means none."""

from collections.abc import Mapping
from typing import Any

from edlm_jax.models.families.family import Family


class Mistral(Family):
    """The one that writes its window down always."""

    def window(self, config: Mapping[str, Any]) -> int | None:
        return config.get("sliding_window", 4096)

    def to_hf(self, spec) -> dict[str, Any]:
        return super().to_hf(spec) | {"sliding_window": None}


MISTRAL = Mistral("mistral", "MistralForCausalLM")
