"""Converted models in the layouts that servers load by name.

sdar           Qwen3 conversions as SDARForCausalLM: LMDeploy and SGLang. Both take token 151669 for the mask and
               blocks of 4 unless told (LMDeploy: --dllm-block-length; SGLang: --dllm-algorithm-config). SGLang reads
               a head of its own, so a tied one is written out.
fast_dllm_v2   Qwen2.5 conversions as Fast_dLLM_QwenForCausalLM, mask 151665.

A mask token elsewhere in the vocabulary has its embedding copied to that row, which the base model's text never uses.
Both count blocks from position 0: a model that was trained with blocks counted from the response
(config.objective.grid) sees blocks there that it never saw, unless every prompt is whole blocks long.
"""

import dataclasses
import warnings
from typing import Any

from flax import nnx

from edlm_jax.errors import InputError
from edlm_jax.models.spec import ModelSpec
from edlm_jax.models.transformer import Transformer
from edlm_jax.pretrained.load import assemble
from edlm_jax.pretrained.released import RELEASED

FORMATS = {"sdar": "SDARForCausalLM", "fast_dllm_v2": "Fast_dLLM_QwenForCausalLM"}
_MODEL_TYPES = {"sdar": "sdar", "fast_dllm_v2": "Fast_dLLM_Qwen"}


def check_format(spec: ModelSpec, name: str) -> None:
    """Refuses what the format's servers would decode wrongly."""
    if name not in FORMATS:
        raise InputError(f"format {name!r} is unknown; choose one of {', '.join(FORMATS)}")
    released = RELEASED[FORMATS[name]]
    if spec.conversion is None:
        raise InputError(f"format {name!r} is for converted models; this one is autoregressive")
    found, needed = ({"family": one.family, **dataclasses.asdict(one.conversion)} for one in (spec, released))
    for what in ("family", "alignment", "pattern", "prefill", "noise"):
        if found[what] != needed[what]:
            raise InputError(f"format {name!r} needs {what} {needed[what]!r}; this model has {found[what]!r}")
    if spec.vocab_size <= (mask := released.conversion.mask_token_id):
        raise InputError(f"format {name!r} has its mask at {mask}; this vocabulary ends at {spec.vocab_size}")


def prepare(model: Transformer, name: str) -> tuple[Transformer, dict[str, Any]]:
    """(the model as the format stores it, its config.json); warns of what its servers decode unlike training."""
    spec, conversion, wanted = model.spec, model.spec.conversion, RELEASED[FORMATS[name]].conversion
    if conversion.grid != wanted.grid:
        warnings.warn(
            f"servers of format {name!r} count blocks from position 0, this model from the response: pad prompts on "
            f"the left to whole blocks of {conversion.block_length}, or train with config.objective.grid='position'",
            stacklevel=3,
        )
    untied = name == "sdar" and spec.tied
    arrays = {path: variable[...] for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    embedding_VD = arrays[("embedding_VD",)]
    embedding_VD = embedding_VD.at[wanted.mask_token_id].set(embedding_VD[conversion.mask_token_id])
    arrays[("embedding_VD",)] = embedding_VD
    if untied:
        arrays[("head_DV",)] = embedding_VD.T
    spec = dataclasses.replace(spec, tied=spec.tied and not untied, conversion=None)
    prepared = assemble(spec, arrays, model.dtype, embedding_VD.dtype.name)
    return prepared, _config(name, spec, conversion.block_length)


def _config(name, spec, block_length):
    """The family's fields in the form that these architectures' code reads (rope_theta, not rope_parameters)."""
    config = spec.to_hf()
    if (rope := config.pop("rope_parameters", None)) is not None:
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else rope
    config |= {"architectures": [FORMATS[name]], "model_type": _MODEL_TYPES[name]}
    if name == "sdar":
        config |= dict(block_size=block_length, mask_token_id=RELEASED[FORMATS[name]].conversion.mask_token_id)
        # The released code reads both; without the first windows are of 4096.
        return config | dict(head_dim=spec.head_dim, sliding_window=None, fuse_cross_entropy=True)
    layer_types = ["full_attention"] * spec.num_layers
    return config | dict(bd_size=block_length, layer_types=layer_types, conplemenrary_mask=True)  # spelled as released
