"""What a model is: every number and switch of the decoder, read from a Hugging Face config.json.

What the file asks for and this decoder does not have is refused by name, never ignored.
"""

import dataclasses
import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax

from edlm_jax.attention.pattern import PLAIN
from edlm_jax.diffusion.streams import ALIGNMENTS, CONVERSIONS, Layout, find_layout
from edlm_jax.errors import InputError
from edlm_jax.models.families import FAMILIES, Kind, find_family
from edlm_jax.models.families.family import flag, positive, size

PREFILLS = tuple(PLAIN)
GRIDS = ("response", "position")
CONFIDENCES = ("raw", "drawn")
PRIORS = ("masks", "uniform_tokens")
ADAPTED = ("all", "noisy")
CHOICES = dict(  # of a conversion's fields
    pattern=CONVERSIONS,
    alignment=ALIGNMENTS,
    prefill=PREFILLS,
    grid=GRIDS,
    confidence=CONFIDENCES,
    commit=("fused", "separate", "first_token"),
    noise=PRIORS,
    adapted=ADAPTED,
)

# By their names in config.json.
ACTIVATIONS = {"silu": jax.nn.silu, "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True)}
_EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size")
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
        for name in ("mask_token_id", "block_length"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise InputError(f"conversion: {name} must be a whole number, not {value!r}")
        if self.mask_token_id < 0:
            raise InputError(f"conversion: mask_token_id must not be negative, it is {self.mask_token_id}")
        if self.block_length < 1:
            raise InputError(f"conversion: block_length must be positive, it is {self.block_length}")
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
        width, heads = size(full, "hidden_size"), size(full, "num_attention_heads")
        kv_heads = size(full, "num_key_value_heads", default=heads)
        head_dim = _head_dim(full, width, heads)
        for key in _EXPERT_KEYS:
            if full.get(key):
                raise InputError(f"config.json: a mixture of experts ({key} = {full[key]}) is not supported")
        if full.get("quantization_config"):
            reason = "quantization_config is not supported; use the checkpoint that is not quantized"
            raise InputError(f"config.json: {reason}")
        bias, mlp_bias = (name in family.bias_flags and flag(full, name) for name in ("attention_bias", "mlp_bias"))
        return cls(
            family=family.model_type,
            vocab_size=size(full, "vocab_size"),
            width=width,
            num_layers=size(full, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            ffn_width=size(full, "intermediate_size"),
            qkv_bias=family.qkv_bias or bias,
            o_bias=bias,
            mlp_bias=mlp_bias,
            qk_norm=family.qk_norm,
            tied=flag(full, "tie_word_embeddings"),
            norm_eps=positive(full, "rms_norm_eps", 1e-6),
            max_length=size(full, "max_position_embeddings"),
            activation=full.get(family.activation_key, "silu"),
            conversion=_conversion(full),
            hf_json=json.dumps(config, indent=2),
            source=source,
            **family.fields(full, head_dim),
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
        return {
            "architectures": [family.architecture],
            "model_type": family.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.width,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.ffn_width,
            family.activation_key: self.activation,
            "rms_norm_eps": self.norm_eps,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": self.max_length,
        } | family.to_hf(self)


def _head_dim(config: Mapping[str, Any], width: int, heads: int) -> int:
    if config.get("head_dim") is not None:
        return size(config, "head_dim")
    if width % heads:
        raise InputError(f"config.json: hidden_size {width} is not a multiple of num_attention_heads {heads}")
    return width // heads


def _conversion(config: Mapping[str, Any]) -> Conversion | None:
    entry = config.get("edlm")
    if entry is None:
        return None
    try:
        return Conversion(**entry)
    except TypeError as error:
        raise InputError(f"config.json: the edlm entry does not describe a conversion: {error}") from None
