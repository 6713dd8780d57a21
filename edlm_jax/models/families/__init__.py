"""The families of models, by what config.json calls them. A new one is a file here and a line in `FAMILIES`."""

from collections.abc import Mapping
from typing import Any

from edlm_jax.errors import InputError
from edlm_jax.models.families.family import Family, Kind
from edlm_jax.models.families.gemma3 import GEMMA3
from edlm_jax.models.families.llama import LLAMA
from edlm_jax.models.families.mistral import MISTRAL
from edlm_jax.models.families.qwen2 import QWEN2
from edlm_jax.models.families.qwen3 import QWEN3
from edlm_jax.models.families.smollm3 import SMOLLM3

__all__ = ["FAMILIES", "Family", "Kind", "find_family"]

FAMILIES: dict[str, Family] = {family.model_type: family for family in (QWEN2, QWEN3, LLAMA, MISTRAL, GEMMA3, SMOLLM3)}


def find_family(config: Mapping[str, Any]) -> Family:
    """That of a config.json, whose architecture and model_type must agree."""
    by_type = FAMILIES.get(config.get("model_type", ""))
    architectures = config.get("architectures") or [by_type and by_type.architecture]
    for family in FAMILIES.values():
        if architectures == [family.architecture] and config.get("model_type", family.model_type) == family.model_type:
            return family
    found = f"architecture {', '.join(map(str, architectures))} (model_type {config.get('model_type')!r})"
    known = ", ".join(family.architecture for family in FAMILIES.values())
    raise InputError(f"config.json: {found} is not supported; supported are {known}")
