"""Low-rank adapters (LoRA, arXiv 2106.09685): W + alpha / rank * A B instead of W, where A and B are trained alone.

Every matrix of attention and FFN has one, as in the paper's comparison (arXiv 2512.14067, ranks 16 and 64); these
matrices and their biases stay as they are, embedding, norms and head are trained with the adapters. B starts at zero,
so that training starts at the model itself. Names: R is the rank, the other letters are the transformer's.

qwix, the library for it, adapts the parameters that it meets in the products of a module's call. Ours reach them as
slices of stacked arrays inside a scan: it finds none and returns the model as it was (0.1.8).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from edlm_jax.models.product import project

ADAPTERS = {  # matrix: its A and its B
    "q_DNH": ("q_a_DR", "q_b_RNH"),
    "k_DKH": ("k_a_DR", "k_b_RKH"),
    "v_DKH": ("v_a_DR", "v_b_RKH"),
    "o_NHD": ("o_a_NHR", "o_b_RD"),
    "gate_DF": ("gate_a_DR", "gate_b_RF"),
    "up_DF": ("up_a_DR", "up_b_RF"),
    "down_FD": ("down_a_FR", "down_b_RD"),
}


@dataclass(frozen=True)
class Lora:
    """Size of the adapters, and the weight of what they add."""

    rank: int
    alpha: float  # over the rank: so the best learning rate hardly depends on the rank

    @property
    def scale(self) -> float:
        """Of A B."""
        return self.alpha / self.rank


def adapter_shapes(shapes: Mapping[str, tuple[int, ...]], rank: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every adapter of a layer whose parameters have these shapes."""
    found = {}
    for matrix, (a, b) in ADAPTERS.items():
        sizes = dict(zip(_letters(matrix), shapes[matrix], strict=True)) | {"R": rank}
        found |= {name: tuple(sizes[letter] for letter in _letters(name)) for name in (a, b)}
    return found


def initial_adapters(key: jax.Array, shapes: Mapping[str, tuple[int, ...]], num_layers: int, rank: int) -> dict:
    """float32 adapters of all layers, stacked: A normal with variance 1 / inputs, B zero."""
    adapters = {}
    for index, (name, shape) in enumerate(adapter_shapes(shapes, rank).items()):
        shape = (num_layers, *shape)
        is_a = _letters(name).endswith("R")
        draw = jax.random.normal(jax.random.fold_in(key, index), shape) / math.sqrt(math.prod(shape[1:-1]))
        adapters[name] = draw if is_a else jnp.zeros(shape)
    return adapters


def scaled(layers: dict[str, jax.Array], lora: Lora | None) -> dict[str, jax.Array]:
    """The same parameters with the scale in every B, so that whoever reads them need not know it."""
    return layers | {b: layers[b] * lora.scale for _, b in ADAPTERS.values()} if lora else layers


def low_rank(p: Mapping[str, jax.Array], matrix: str, x_BTI: jax.Array) -> jax.Array | int:
    """What the adapter of one layer's matrix adds to x W, with `scaled` parameters; 0 where it has none."""
    a, b = ADAPTERS[matrix]
    if a not in p:
        return 0
    return project(project(x_BTI, p[a], summed=p[a].ndim - 1), p[b])


def merge(params: dict, lora: Lora | None) -> dict:
    """The parameters of a model without adapters that computes the same."""
    if lora is None:
        return params
    layers = dict(params["layers"])
    for matrix, names in ADAPTERS.items():
        a, b = (layers.pop(name) for name in names)
        delta = jnp.einsum(f"L{_letters(names[0])},L{_letters(names[1])}->L{_letters(matrix)}", a, b)
        layers[matrix] = layers[matrix] + lora.scale * delta
    return params | {"layers": layers}


def partition(params: dict) -> tuple[dict, dict]:
    """(what is trained, what stays as it is), two trees that `combine` joins; without adapters all is trained."""
    layers = params.get("layers", {})
    if not any(a in layers for a, _ in ADAPTERS.values()):
        return params, {}
    stays = lambda name: name in ADAPTERS or "bias" in name  # noqa: E731
    trained, frozen = ({n: v for n, v in layers.items() if stays(n) is kept} for kept in (False, True))
    return params | {"layers": trained}, frozen


def combine(trained: dict, frozen: dict) -> dict:
    """The parameters of a `partition`."""
    return trained | {"layers": trained["layers"] | frozen} if frozen else trained


def _letters(name: str) -> str:
    return name.rsplit("_", 1)[1]
