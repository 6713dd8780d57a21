"""Low-rank adapters (LoRA, arXiv 2106.09685): W + alpha / rank * A B instead of W, where A and B are trained alone.

Every matrix of attention and FFN has one, as in the paper's comparison (arXiv 2512.14067, ranks 16 and 64), or those
that are named. Adapters of all columns are trained with embedding, norms and head. Those of noisy columns alone (Uno,
arXiv 2609.04010) are all that is trained: whatever else is computed with the model is the model that it was. B starts
at zero, so that training starts at the model itself. Names: R is the rank, other letters as in transformer.py.

qwix, the library for it, adapts the parameters that it meets in the products of a module's call. Ours reach them as
slices of stacked arrays inside a scan: it finds none and returns the model as it was (0.1.8).
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from edlm_jax.models.product import project
from edlm_jax.parallel import cpu
from edlm_jax.parallel.sharding import letters

ADAPTERS = {  # matrix: its A and its B
    "q_DNH": ("q_a_DR", "q_b_RNH"),
    "k_DKH": ("k_a_DR", "k_b_RKH"),
    "v_DKH": ("v_a_DR", "v_b_RKH"),
    "o_NHD": ("o_a_NHR", "o_b_RD"),
    "gate_DF": ("gate_a_DR", "gate_b_RF"),
    "up_DF": ("up_a_DR", "up_b_RF"),
    "down_FD": ("down_a_FR", "down_b_RD"),
}
ADAPTER_NAMES = {name for names in ADAPTERS.values() for name in names}
TARGETS = {f"{matrix.partition('_')[0]}_proj": matrix for matrix in ADAPTERS}  # as Hugging Face calls them: q_proj
_NAMES = ADAPTERS | {  # and of matrices that decoding has fused; B has one part for each of them, and zeros beside it
    "qkv_DKMH": ("qkv_a_DR", "qkv_b_RKMH"),
    "gate_up_DPF": ("gate_up_a_DR", "gate_up_b_RPF"),
}
DECODED_ADAPTERS = {name for names in _NAMES.values() for name in names}
_LAST = "adapted columns"  # stands beside a layer's parameters where not all of a call are


@dataclass(frozen=True)
class Lora:
    """Size of the adapters, the weight of what they add, and where they do."""

    rank: int
    alpha: float  # over the rank: so the best learning rate hardly depends on the rank
    columns: str = "all"  # that they act on; "noisy": of a row [noisy | clean], or of the drafts in decoding
    targets: tuple[str, ...] = ()  # names of TARGETS; () = every one

    @property
    def scale(self) -> float:
        """Of A B."""
        return self.alpha / self.rank

    @property
    def gated(self) -> bool:
        """Do they act on noisy columns alone?"""
        return self.columns == "noisy"

    @property
    def adapters(self) -> dict[str, tuple[str, str]]:
        """Those of ADAPTERS that there are."""
        return {TARGETS[name]: ADAPTERS[TARGETS[name]] for name in self.targets or TARGETS}


def in_order(names: Collection[str]) -> tuple[str, ...]:
    """`targets` as they are written down: each once, however a config names them, and () for all."""
    known = tuple(name for name in TARGETS if name in names)
    return known if len(known) < len(TARGETS) else ()


def adapter_shapes(shapes: Mapping[str, tuple[int, ...]], lora: Lora) -> dict[str, tuple[int, ...]]:
    """Name and shape of every adapter of a layer whose parameters have these shapes."""
    found = {}
    for matrix, (a, b) in lora.adapters.items():
        sizes = dict(zip(letters(matrix), shapes[matrix], strict=True)) | {"R": lora.rank}
        found |= {name: tuple(sizes[letter] for letter in letters(name)) for name in (a, b)}
    return found


def initial_adapters(key: jax.Array, shapes: Mapping[str, tuple[int, ...]], num_layers: int, lora: Lora) -> dict:
    """float32 adapters of all layers, stacked: A normal with variance 1 / inputs, B zero."""
    adapters = {}
    for index, (name, shape) in enumerate(adapter_shapes(shapes, lora).items()):
        draw = jax.random.normal(jax.random.fold_in(key, index), (num_layers, *shape)) / math.sqrt(
            math.prod(shape[:-1])
        )
        adapters[name] = draw if letters(name).endswith("R") else jnp.zeros_like(draw)
    return adapters


def scaled(layers: dict[str, jax.Array], lora: Lora | None) -> dict[str, jax.Array]:
    """The same parameters with the scale in every B, so that whoever reads them need not know it."""
    return layers | {b: layers[b] * lora.scale for _, b in lora.adapters.values()} if lora else layers


def low_rank(p: Mapping, matrix: str, x_BTI: jax.Array) -> jax.Array | int:
    """What the adapter of one layer's matrix adds to x W, with `scaled` parameters; 0 where it has none."""
    a, b = _NAMES[matrix]
    if a not in p:
        return 0
    closed = max(x_BTI.shape[1] - p.get(_LAST, x_BTI.shape[1]), 0)
    y_BTO = project(project(x_BTI[:, closed:], p[a], summed=len(letters(a)) - 1), p[b])
    return jnp.pad(y_BTO, ((0, 0), (closed, 0), *((0, 0),) * (y_BTO.ndim - 2))) if closed else y_BTO


def fuse_adapters(p: Mapping, matrices: tuple[str, ...], fused: str, join: Callable) -> dict:
    """Those of one layer's matrices that share their input, as one of the `fused` matrix that `join(*matrices)` gives.

    Two products then take the place of two each, which for few columns cost more by their number than by their size.
    """
    adapted = [matrix for matrix in matrices if ADAPTERS[matrix][0] in p]
    if not adapted:
        return {}
    a_DR = jnp.concatenate([p[ADAPTERS[matrix][0]] for matrix in adapted], axis=1)
    beside = lambda b, matrix: jnp.zeros((len(b), *p[matrix].shape[1:]), b.dtype)  # noqa: E731
    parts = [p[ADAPTERS[matrix][1]] for matrix in adapted]
    rows = [join(*(b if m == own else beside(b, m) for m in matrices)) for own, b in zip(adapted, parts, strict=True)]
    return dict(zip(_NAMES[fused], (a_DR, jnp.concatenate(rows)), strict=True))


def opened(p: Mapping, last: int) -> dict:
    """A layer whose adapters act on the `last` columns of a call alone."""
    own = without_adapters(p)
    if not last:
        return own
    packed = {m: (p[m], p[a], p[b]) for m, (a, b) in _NAMES.items() if m in p and a in p and isinstance(p[b], cpu.Low)}
    own |= {m: replace(w, adapter=cpu.Adapter(a, b, last)) for m, (w, a, b) in packed.items()}
    return own if packed else dict(p) | {_LAST: last}


def without_adapters(params: Mapping) -> dict:
    """A layer's, or all layers', own parameters."""
    return {name: value for name, value in params.items() if name not in DECODED_ADAPTERS}


def merge(params: dict, lora: Lora | None) -> dict:
    """The parameters of a model without adapters that computes the same."""
    if lora is None:
        return params
    layers = params["layers"]
    return params | {"layers": without_adapters(layers) | {name: merged(layers, name, lora) for name in lora.adapters}}


def merged(layers: Mapping[str, jax.Array], matrix: str, lora: Lora | None) -> jax.Array:
    """A matrix of all layers, with what its adapter adds to it if it has one."""
    if lora is None or matrix not in lora.adapters:
        return layers[matrix]
    a, b = lora.adapters[matrix]
    delta = jnp.einsum(f"L{letters(a)},L{letters(b)}->L{letters(matrix)}", layers[a], layers[b])
    return layers[matrix] + lora.scale * delta


def partition(params: dict, lora: Lora | None) -> tuple[dict, dict]:
    """(what is trained, what stays as it is), two trees that `combine` joins; without adapters all is trained."""
    if lora is None:
        return params, {}
    stays = lambda name: name not in ADAPTER_NAMES if lora.gated else name in ADAPTERS or "bias" in name  # noqa: E731
    parts = [{n: v for n, v in params["layers"].items() if stays(n) is kept} for kept in (False, True)]
    others = [{name: value for name, value in params.items() if name != "layers"}, {}]
    trained, frozen = others[::-1] if lora.gated else others
    return trained | {"layers": parts[0]}, frozen | {"layers": parts[1]}


def combine(trained: dict, frozen: dict) -> dict:
    """The parameters of a `partition`."""
    return trained | frozen | {"layers": trained["layers"] | frozen["layers"]} if frozen else trained
