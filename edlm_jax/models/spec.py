"""What a model is: every number and switch of the decoder, read from a Hugging Face config.json.

What the file asks for and this decoder does not have is refused by name, never ignored.
"""

import dataclasses
import json
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import jax

from edlm_jax.attention.pattern import PLAIN
from edlm_jax.diffusion.streams import ALIGNMENTS, CONVERSIONS, Layout, find_layout
from edlm_jax.errors import InputError
from edlm_jax.models.families import FAMILIES, Kind, find_family
from edlm_jax.models.families.family import flag, size
from edlm_jax.models.rope import positive, rotary_tables

PREFILLS = tuple(PLAIN)
GRIDS = ("response", "position")
CONFIDENCES = ("raw", "drawn")
PRIORS = ("masks", "uniform_tokens")
ADAPTED = ("all", "noisy")
# Of a conversion's fields.
CHOICES = dict(pattern=CONVERSIONS, alignment=ALIGNMENTS, prefill=PREFILLS, grid=GRIDS, noise=PRIORS, adapted=ADAPTED)
CHOICES |= dict(confidence=CONFIDENCES, commit=("fused", "separate", "first_token"))

# By their names in config.json.
ACTIVATIONS = {"silu": jax.nn.silu, "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True)}
_SIZES = dict(vocab_size="vocab_size", width="hidden_size", ffn_width="intermediate_size", head_dim="head_dim")
_SIZES |= dict(num_heads="num_attention_heads", num_kv_heads="num_key_value_heads", num_layers="num_hidden_layers")
_SIZES |= dict(max_length="max_position_embeddings")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size")
_REFUSED = dict.fromkeys(_EXPERTS, " (a mixture of experts)")
_REFUSED |= {"quantization_config": "; use the checkpoint that is not quantized"}
_STALE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings", "layer_types")


@dataclasses.dataclass(frozen=True)
class Conversion:
    """How a checkpoint was converted, hence how it must be decoded: the "edlm" entry of its config.json."""

    mask_token_id: int
    block_length: int
    pattern: str = "clean_context"
    alignment: str = "same_position"
    prefill: str = "block_causal"
    grid: str = "response"  # blocks are counted from the response's start, or from position 0
    confidence: str = "raw"  # of the model's own distribution, or of the one that tokens are drawn from
    commit: str = "fused"  # how a finished block enters the cache: decoding/blocks.py
    noise: str = "masks"  # what stood where tokens were unknown
    adapted: str = "all"  # columns that adapters act on; "noisy": its text is the AR model's

    def __post_init__(self):
        for name, least, wanted in (("mask_token_id", 0, "not be negative"), ("block_length", 1, "be positive")):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise InputError(f"conversion: {name} must be a whole number, not {value!r}")
            if value < least:
                raise InputError(f"conversion: {name} must {wanted}, it is {value}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(f"conversion: {name} {getattr(self, name)!r} is not one of {', '.join(choices)}")
        if self.commit == "first_token" and self.alignment != "shifted":
            raise InputError("conversion: commit 'first_token' needs alignment 'shifted'")

    @property
    def layout(self) -> Layout:
        """The row that it was trained on."""
        return find_layout(self.pattern, self.block_length, self.alignment)


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """A Llama-shaped decoder; hashable, so that it can be static under jit."""

    family: str  # a key of FAMILIES
    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_width: int
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied: bool  # the head is the embedding, transposed
    norm_eps: float
    max_length: int
    kinds: tuple[Kind, ...]  # of the layers, in turn: the fewest first ones that are all of them when repeated
    activation: str = "silu"  # a key of ACTIVATIONS
    centered_norms: bool = False  # they multiply by 1 + weight, rounded once
    branch_norms: bool = False  # a layer's attention and FFN end in norms, too
    embedding_scale: float = 1.0
    query_scale: float = 1.0  # beside 1 / sqrt(head_dim)
    conversion: Conversion | None = None  # None: a plain AR model
    hf_json: str = "{}"  # the config.json it was built from, so that export writes back what we do not understand
    source: str = ""  # the directory it was read from: the tokenizer files are copied from there

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            found, known = f"{FAMILIES[self.family].activation_key} {self.activation!r}", ", ".join(ACTIVATIONS)
            raise InputError(f"config.json: {found} is not supported (only {known})")
        kinds = [self.kind(layer) for layer in range(self.num_layers)]
        turns = (kinds[:n] for n in range(1, len(kinds) + 1))
        shortest = next(turn for turn in turns if all(kind == turn[i % len(turn)] for i, kind in enumerate(kinds)))
        object.__setattr__(self, "kinds", tuple(shortest))
        if self.num_heads % self.num_kv_heads:
            raise InputError(f"config.json: {self.num_heads} heads cannot share {self.num_kv_heads} key heads evenly")
        if self.conversion is not None and self.conversion.mask_token_id >= self.vocab_size:
            mask_id = self.conversion.mask_token_id
            raise InputError(f"conversion: mask_token_id {mask_id} is outside the vocabulary of {self.vocab_size}")

    @property
    def sizes(self) -> dict[str, int]:
        """Of every letter that names an axis of a parameter."""
        shape = self.vocab_size, self.width, self.num_heads, self.num_kv_heads, self.head_dim, self.ffn_width
        return dict(zip("VDNKHF", shape, strict=True))

    def kind(self, layer: int) -> Kind:
        """Of one layer."""
        return self.kinds[layer % len(self.kinds)]

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Each that some layer has, once; None is no window."""
        return tuple(dict.fromkeys(kind.window for kind in self.kinds))

    def rotary(self, positions: jax.Array) -> tuple[tuple[jax.Array, jax.Array] | None, ...]:
        """cos and sin of each of `kinds` (`rotary_tables`), None without RoPE; kinds with the same RoPE share them."""
        tables = cache(lambda rope: rope and rotary_tables(positions, rope, self.head_dim))
        return tuple(tables(kind.rope) for kind in self.kinds)

    @property
    def stored_dtype(self) -> str | None:
        """What its weights were stored as where it was read, if config.json says so."""
        config = json.loads(self.hf_json)
        return config.get("dtype") or config.get("torch_dtype")

    @property
    def diffuses(self) -> bool:
        """Was it converted, and not merely given adapters that draft for the AR model?"""
        return self.conversion is not None and self.conversion.adapted == "all"

    @property
    def on_position_grid(self) -> bool:
        """Are blocks counted from position 0?"""
        return self.conversion is not None and self.conversion.grid == "position"

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], source: str = "") -> "ModelSpec":
        """Builds the spec of a config.json's dictionary, or says what in it is not supported."""
        config, family = dict(config), find_family(config)
        full = {**family.absent, **config}
        sizes = _sizes(full)
        for key in (*_REFUSED, *family.refused):
            if full.get(key):
                raise InputError(f"config.json: {key} = {full[key]!r} is not supported{_REFUSED.get(key, '')}")
        bias, mlp_bias = (name in family.bias_flags and flag(full, name) for name in ("attention_bias", "mlp_bias"))
        return cls(
            family=family.model_type,
            qkv_bias=family.qkv_bias or bias,
            o_bias=bias,
            mlp_bias=mlp_bias,
            qk_norm=family.qk_norm,
            tied=flag(full, "tie_word_embeddings"),
            norm_eps=positive(full.get("rms_norm_eps", 1e-6), "rms_norm_eps"),
            activation=full.get(family.activation_key, "silu"),
            conversion=_conversion(full),
            hf_json=json.dumps(config, indent=2),
            source=source,
            **sizes,
            **family.fields(full, sizes["head_dim"]),
        )

    def to_hf(self) -> dict[str, Any]:
        """The config.json dictionary: the original one with the conversion; fields are rewritten if any changed.

        Code that lay beside the original does not come along, so that nothing names it.
        """
        config = json.loads(self.hf_json)
        for name in ("edlm", "auto_map"):
            config.pop(name, None)
        original = ModelSpec.from_hf(config, self.source) if config else None
        if not original or dataclasses.replace(original, conversion=self.conversion, hf_json=self.hf_json) != self:
            config = {key: value for key, value in config.items() if key not in _STALE_KEYS} | self._hf_fields()
        rope = FAMILIES[self.family].rope(self)
        config |= rope.respelled(config, self.head_dim) if rope else {}
        if self.conversion is not None:
            config["edlm"] = dataclasses.asdict(self.conversion)
        return config

    def _hf_fields(self) -> dict[str, Any]:
        family = FAMILIES[self.family]
        shared = {
            "architectures": [family.architecture],
            "model_type": family.model_type,
            family.activation_key: self.activation,
            "rms_norm_eps": self.norm_eps,
            "tie_word_embeddings": self.tied,
        }
        return shared | {key: getattr(self, name) for name, key in _SIZES.items()} | family.to_hf(self)


def _sizes(config: dict[str, Any]) -> dict[str, Any]:
    """Those of `_SIZES`: a null number of key heads is that of heads, and without a size heads share the width."""
    if config.get("num_key_value_heads", 0) is None:
        config["num_key_value_heads"] = config.get("num_attention_heads")
    if config.get("head_dim") is None:
        width, heads = size(config, "hidden_size"), size(config, "num_attention_heads")
        if width % heads:
            raise InputError(f"config.json: hidden_size {width} is not a multiple of num_attention_heads {heads}")
        config["head_dim"] = width // heads
    return {name: size(config, key) for name, key in _SIZES.items()}


def _conversion(config: Mapping[str, Any]) -> Conversion | None:
    entry = config.get("edlm")
    if entry is None:
        return None
    try:
        return Conversion(**entry)
    except TypeError as error:
        raise InputError(f"config.json: the edlm entry does not describe a conversion: {error}") from None
