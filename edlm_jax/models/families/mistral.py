"""Mistral: a sliding window in every layer, of 4096 tokens where config.json does not say; null means none."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from edlm_jax.models.families.family import Family, sliding_window


class Mistral(Family):
    """Its window is written down always, for absent would mean 4096."""

    def fields(self, config: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
        (kind,) = super().fields(config, head_dim)["kinds"]
        return {"kinds": (dataclasses.replace(kind, window=sliding_window(config)),)}

    def to_hf(self, spec) -> dict[str, Any]:
        return super().to_hf(spec) | {"sliding_window": spec.kinds[0].window}


MISTRAL = Mistral("mistral", "MistralForCausalLM", absent={"sliding_window": 4096})
