"""Block-diffusion checkpoints as others release them: their config.json and tensor names in terms of ours.

A config's own mask_token_id and block length (block_size, bd_size) come before those of `RELEASED`. Prompt and grid
are those of the released samplers. Efficient-DLM was trained with block-causal prompts all the same, and so its
likelihood is measured. Counted from position 0, the last tokens of a prompt share their block with the first ones of
the answer. Rules compare probabilities after temperature, top-k and top-p in SDAR, Fast-dLLM v2 and Dream, the model's
own in the others. Fast-dLLM v2 takes a block's first token from the commit before it. DiffEncoderModel has
Efficient-DLM's names and is taken to be decoded alike.

Dream and LLaDA have no block length: 32 is our choice, and decoding them in cached blocks, which they were not trained
for, is an approximation; so it is for dllm's mdlm models, which their config.json does not tell from bd3lm ones.

What the released samplers get wrong is not done here: Fast-dLLM v2 never reads a prompt of exactly one block, and SDAR
with a fixed number of tokens a step overwrites prompt tokens that share the first block.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from edlm_jax.errors import InputError
from edlm_jax.models.families import FAMILIES
from edlm_jax.models.spec import Conversion
from edlm_jax.pretrained.layout import Place


@dataclass(frozen=True)
class Released:
    """One released architecture; `conversion` holds its defaults."""

    family: str
    conversion: Conversion
    block_key: str = ""  # where its config.json has the block length
    fields: Mapping[str, str] = field(default_factory=dict)  # {our name: its name} of the config's fields
    names: Mapping[str, str] = field(default_factory=dict)  # {part of our tensor name: its own}, applied in order
    tensors_vary: bool = False  # releases were seen with the family's own names, too
    constants: Mapping[str, Any] = field(default_factory=dict)  # what this decoder needs to find in its config.json


_EFFICIENT_DLM = Released(
    family="qwen3",
    conversion=Conversion(151662, 32, prefill="bidirectional"),
    block_key="block_size",
    names={"model.": "encoder.", "lm_head.": "diffusion_head."},
    tensors_vary=True,
    constants=dict(disable_qk_norm=False),
)
_DRAWN = dict(grid="position", confidence="drawn")
_WHOLE = dict(pattern="bidirectional", prefill="bidirectional")
_NOT_IN_LLADA = ("attention_layer_norm", "include_bias", "include_qkv_bias", "scale_logits", "input_emb_norm")
RELEASED = {
    "EfficientDLM": _EFFICIENT_DLM,  # nvidia/Efficient-DLM-4B
    "DiffEncoderModel": _EFFICIENT_DLM,  # nvidia/Nemotron-Diffusion-Research-4B-v0
    # JetLM/SDAR-4B-Chat
    "SDARForCausalLM": Released(family="qwen3", conversion=Conversion(151669, 4, **_DRAWN), block_key="block_size"),
    "Fast_dLLM_QwenForCausalLM": Released(  # Fast_dLLM_v2_7B
        family="qwen2",
        conversion=Conversion(151665, 32, alignment="shifted", commit="first_token", **_DRAWN),
        block_key="bd_size",
    ),
    # dllm's bd3lm models, which add their mask token after the tokenizer's own.
    "A2DQwen3LMHeadModel": Released(family="qwen3", conversion=Conversion(151669, 32), block_key="block_size"),
    "A2DQwen2LMHeadModel": Released(family="qwen2", conversion=Conversion(151665, 32), block_key="block_size"),
    "A2DLlamaLMHeadModel": Released(family="llama", conversion=Conversion(128256, 32), block_key="block_size"),
    # Dream-v0-Instruct-7B
    "DreamModel": Released(family="qwen2", conversion=Conversion(151666, 32, alignment="shifted", **_WHOLE, **_DRAWN)),
    "LLaDAModelLM": Released(  # GSAI-ML/LLaDA-8B-Instruct
        family="llama",
        conversion=Conversion(126336, 32, grid="position", **_WHOLE),
        fields=dict(hidden_size="d_model", num_hidden_layers="n_layers", num_attention_heads="n_heads")
        | dict(num_key_value_heads="n_kv_heads", intermediate_size="mlp_hidden_size", vocab_size="embedding_size")
        | dict(max_position_embeddings="max_sequence_length", tie_word_embeddings="weight_tying")
        | dict(hidden_act="activation_type"),
        names={
            "model.embed_tokens.": "model.transformer.wte.",
            "model.norm.": "model.transformer.ln_f.",
            "lm_head.": "model.transformer.ff_out.",
            "model.layers.": "model.transformer.blocks.",
            "self_attn.o_proj.": "attn_out.",
            "self_attn.": "",
            "mlp.gate_proj.": "ff_proj.",
            "mlp.up_proj.": "up_proj.",
            "mlp.down_proj.": "ff_out.",
            "input_layernorm.": "attn_norm.",
            "post_attention_layernorm.": "ff_norm.",
        },
        constants=dict(rope=True, block_type="llama", layer_norm_type="rms", **dict.fromkeys(_NOT_IN_LLADA, False)),
    ),
}
_KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "torch_dtype", "dtype", "initializer_range")
_KEPT += ("rms_norm_eps", "rope_theta")


def architecture(config: Mapping[str, Any]) -> str | None:
    """The released architecture of a config.json, if it is one of these."""
    return next((name for name in RELEASED if config.get("architectures") == [name]), None)


def translate(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of the family it belongs to, with its conversion; any other config as it is."""
    name = architecture(config)
    if name is None:
        return dict(config)
    released = RELEASED[name]
    for key, value in released.constants.items():
        if config.get(key, value) != value:
            raise InputError(f"config.json: {name} with {key} = {config[key]!r} is not supported (only {value!r})")
    ours = dict(config)
    if released.fields:
        if missing := [theirs for theirs in released.fields.values() if theirs not in config]:
            raise InputError(f"config.json: {name} needs {', '.join(missing)}")
        renamed = {mine: config[theirs] for mine, theirs in released.fields.items()}
        ours = {key: config[key] for key in _KEPT if key in config} | renamed
    mask = config.get("mask_token_id", released.conversion.mask_token_id)
    block_length = config.get(released.block_key) or released.conversion.block_length
    conversion = replace(released.conversion, mask_token_id=mask, block_length=block_length)
    ours.pop("auto_map", None)
    ours |= {"architectures": [FAMILIES[released.family].architecture], "model_type": released.family}
    return ours | {"edlm": asdict(conversion)}


def rename(places: Iterable[Place], config: Mapping[str, Any], found: Collection[str]) -> list[Place]:
    """Our parameters' places under the names that the release uses; `found` are the tensors that are there."""
    released = RELEASED.get(architecture(config))
    if released is None or released.tensors_vary and "model.embed_tokens.weight" in found:
        return list(places)
    renamed = []
    for place in places:
        template = place.template
        for ours, theirs in released.names.items():
            template = template.replace(ours, theirs, 1)
        renamed.append(replace(place, template=template))
    return renamed
