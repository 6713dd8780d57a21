"""Adapters of noisy columns beside the model that they were trained on: `adapter/`, as the `peft` library lays it out.

The model itself stays as it is. What the adapters were trained on is remembered by a fingerprint, since beside another
model they would only draft badly, and nothing would say so.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from edlm_jax.errors import InputError
from edlm_jax.models.lora import TARGETS, Lora, in_order
from edlm_jax.models.spec import ModelSpec
from edlm_jax.pretrained.checkpoint import Checkpoint
from edlm_jax.pretrained.layout import Place, places

DIRECTORY, CONFIG, WEIGHTS = "adapter", "adapter_config.json", "adapter_model.safetensors"
_FINGERPRINT = "fingerprint of the base"


def adapter_places(spec: ModelSpec, lora: Lora) -> list[Place]:
    """Every adapter and its tensors: `lora_A` is [R, in], `lora_B` [out, R]."""
    found, adapted = [], [place for place in places(spec) if place.path[-1] in lora.adapters]
    for place in adapted:
        out, into = place.groups
        module = "base_model.model." + place.template.removesuffix(".weight")
        sizes = {**place.sizes, "R": lora.rank}
        for name, part, groups in zip(lora.adapters[place.path[-1]], "AB", (("R", into), (out, "R")), strict=True):
            tensor = dict(template=f"{module}.lora_{part}.weight", groups=groups, sizes=sizes)
            found.append(dataclasses.replace(place, path=("layers", name), **tensor))
    return found


def write_adapter(spec: ModelSpec, lora: Lora, arrays: dict[str, np.ndarray], directory: Path) -> None:
    """Beside the model in `directory`; arrays by the names of `adapter_places`."""
    target = directory / DIRECTORY
    target.mkdir()
    described = dict(peft_type="LORA", task_type="CAUSAL_LM", base_model_name_or_path=None)
    described |= dict(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, bias="none")
    described |= dict(target_modules=list(lora.targets or TARGETS), inference_mode=True)
    (target / CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    with Checkpoint(directory) as base:
        marks = {"format": "pt", "columns": lora.columns, _FINGERPRINT: fingerprint(base, spec)}
    save_file(arrays, target / WEIGHTS, marks)


def read_lora(directory: Path) -> Lora | None:
    """The adapters that lie beside a model; None if there are none."""
    path = directory / DIRECTORY / CONFIG
    if not path.exists():
        return None
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        rank, alpha, targets = (described[name] for name in ("r", "lora_alpha", "target_modules"))
        known = set(targets) <= set(TARGETS)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} does not describe adapters of peft's: {error!r}") from None
    if not known or not targets:
        raise InputError(f"{path}: target_modules are not all among {', '.join(TARGETS)}")
    return Lora(rank, alpha, "noisy", in_order(targets))


def check_adapter(adapter: Checkpoint, base: Checkpoint, spec: ModelSpec, lora: Lora) -> None:
    """Refuses adapters whose names, shapes or fingerprint are not those of the model beside them."""
    adapter.check({name: place.hf_shape for place in adapter_places(spec, lora) for name in place.hf_names}, tied=False)
    if adapter.metadata.get(_FINGERPRINT) != fingerprint(base, spec):
        raise InputError(
            f"{adapter.directory} holds adapters that were trained on another model; put that beside it, or remove it"
        )


def fingerprint(base: Checkpoint, spec: ModelSpec) -> str:
    """Of the names and shapes of all tensors and of their first numbers, in bfloat16: whatever they are stored in."""
    seen, layout = hashlib.sha256(), places(spec)
    pairs = zip(layout, base.rename(layout), strict=True)
    for name, there in (pair for place, own in pairs for pair in zip(place.hf_names, own.hf_names, strict=True)):
        tensor = base[there]
        shape = tuple(tensor.get_shape())
        first = np.asarray(tensor[tuple(slice(0, min(size, 64)) for size in shape)], np.float32)
        seen.update(f"{name}{shape}".encode() + first.astype(jnp.bfloat16).tobytes())
    return seen.hexdigest()
