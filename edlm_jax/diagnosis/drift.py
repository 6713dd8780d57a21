"""How far conversion moved the weights: relative Frobenius norm and cosine per layer, attention and FFN apart."""

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from edlm_jax.errors import InputError
from edlm_jax.models.spec import ModelSpec
from edlm_jax.models.transformer import Transformer
from edlm_jax.training.metrics import drift_products


def weight_drift(before: Transformer, after: Transformer) -> dict[str, dict[str, list[float]]]:
    """{group: {relative: |after - before| / |before| of each layer, cosine: ...}}, over all matrices of a group."""
    check_comparable(before.spec, after.spec)
    return drift_from(lambda name: getattr(before.layers, name)[...], after)


def drift_from(before: Callable[[str], jax.Array], after: Transformer) -> dict[str, dict[str, list[float]]]:
    """`weight_drift` from a model whose matrices `before` gives by name, one at a time."""
    products, found = drift_products(before, nnx.to_pure_dict(nnx.state(after.layers, nnx.Param))), {}
    for group, p in products.items():
        old, new, moved = (np.sqrt(p[name]) for name in ("before", "after", "moved"))
        found[group] = {"relative": (moved / old).tolist(), "cosine": (p["both"] / (old * new)).tolist()}
    return found


def check_comparable(before: ModelSpec, after: ModelSpec) -> None:
    """Raises InputError for models whose layers have other shapes."""
    for name in ("num_layers", "width", "num_heads", "num_kv_heads", "head_dim", "ffn_width"):
        if getattr(before, name) != getattr(after, name):
            raise InputError(
                f"weight drift compares two models of one shape; these differ: {name} {getattr(before, name)} and "
                f"{getattr(after, name)}"
            )
