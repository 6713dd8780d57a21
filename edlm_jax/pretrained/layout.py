"""Where each of our parameters lives in a Hugging Face checkpoint.

A Hugging Face linear layer stores [out, in] with heads and head size flattened together: "NH,D" below. Ours are named
by their axes and unflattened: q_DNH. The letters of both sides say how to get from one to the other.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from edlm_jax.models.families import FAMILIES
from edlm_jax.models.layer import layer_shapes
from edlm_jax.models.spec import ModelSpec
from edlm_jax.parallel.sharding import letters

_TOP = {
    "embedding_VD": ("model.embed_tokens.weight", "V,D"),
    "final_norm_D": ("model.norm.weight", "D"),
    "head_DV": ("lm_head.weight", "V,D"),
}
_LAYER = {  # a family may call some otherwise (`Family.names`)
    "attention_norm_D": ("input_layernorm.weight", "D"),
    "q_DNH": ("self_attn.q_proj.weight", "NH,D"),
    "k_DKH": ("self_attn.k_proj.weight", "KH,D"),
    "v_DKH": ("self_attn.v_proj.weight", "KH,D"),
    "o_NHD": ("self_attn.o_proj.weight", "D,NH"),
    "q_bias_NH": ("self_attn.q_proj.bias", "NH"),
    "k_bias_KH": ("self_attn.k_proj.bias", "KH"),
    "v_bias_KH": ("self_attn.v_proj.bias", "KH"),
    "o_bias_D": ("self_attn.o_proj.bias", "D"),
    "q_norm_H": ("self_attn.q_norm.weight", "H"),
    "k_norm_H": ("self_attn.k_norm.weight", "H"),
    "attention_out_norm_D": ("post_attention_layernorm.weight", "D"),
    "mlp_norm_D": ("post_attention_layernorm.weight", "D"),
    "gate_DF": ("mlp.gate_proj.weight", "F,D"),
    "up_DF": ("mlp.up_proj.weight", "F,D"),
    "down_FD": ("mlp.down_proj.weight", "D,F"),
    "gate_bias_F": ("mlp.gate_proj.bias", "F"),
    "up_bias_F": ("mlp.up_proj.bias", "F"),
    "down_bias_D": ("mlp.down_proj.bias", "D"),
    "mlp_out_norm_D": ("post_feedforward_layernorm.weight", "D"),
}


@dataclasses.dataclass(frozen=True)
class Place:
    """One parameter of ours (all of its layers, if it has any) and its tensors in a Hugging Face checkpoint."""

    path: tuple[str, ...]  # in the model's state
    template: str  # of the tensors' names, with {layer} where the parameter is stacked
    groups: tuple[str, ...]  # letters of the Hugging Face axes, several where they are flattened together
    sizes: Mapping[str, int]  # of every letter
    num_layers: int  # 0: not stacked

    @property
    def letters(self) -> str:
        """The axes of one layer of our parameter."""
        return letters(self.path[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of our parameter."""
        layers = (self.num_layers,) if self.num_layers else ()
        return (*layers, *(self.sizes[letter] for letter in self.letters))

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """The shape of each Hugging Face tensor."""
        return tuple(math.prod(self.sizes[letter] for letter in group) for group in self.groups)

    @property
    def hf_names(self) -> tuple[str, ...]:
        """The names of the Hugging Face tensors, layer by layer."""
        return tuple(self.template.format(layer=layer) for layer in range(max(self.num_layers, 1)))

    def read(self, tensor, index: tuple[slice, ...]) -> np.ndarray:
        """The part `index` of one layer of ours; only that part is read from `tensor`, sliced lazily or not."""
        ranges = {a: part.indices(self.sizes[a])[:2] for a, part in zip(self.letters, index, strict=True)}
        outer, inner, split = [], [], []
        for group in self.groups:
            start, stop = ranges[group[0]]
            rest = [self.sizes[letter] for letter in group[1:]]
            outer.append(slice(start * math.prod(rest), stop * math.prod(rest)))
            split += [stop - start, *rest]
            inner += [slice(None), *(slice(*ranges[letter]) for letter in group[1:])]
        return tensor[tuple(outer)].reshape(split)[tuple(inner)].transpose(self._order)

    def write(self, layer: np.ndarray) -> np.ndarray:
        """The Hugging Face tensor of one layer of ours."""
        return np.ascontiguousarray(layer.transpose(np.argsort(self._order)).reshape(self.hf_shape))

    @property
    def _order(self) -> tuple[int, ...]:
        return tuple("".join(self.groups).index(letter) for letter in self.letters)


def places(spec: ModelSpec) -> list[Place]:
    """Every parameter of the model, in the order in which a checkpoint lists them."""
    shapes, sizes, renamed = layer_shapes(spec), spec.sizes, FAMILIES[spec.family].names
    place = lambda path, name, axes, count: Place(path, name, tuple(axes.split(",")), sizes, count)  # noqa: E731
    top = [place((ours,), *theirs, 0) for ours, theirs in _TOP.items() if ours != "head_DV" or not spec.tied]
    layers = [
        place(("layers", ours), f"model.layers.{{layer}}.{renamed.get(ours, name)}", axes, spec.num_layers)
        for ours, (name, axes) in _LAYER.items()
        if ours in shapes
    ]
    return top + layers
