"""How far conversion moved the weights: relative Frobenius norm and cosine per layer, attention and FFN apart."""

import jax
from flax import nnx

from edlm_jax.errors import InputError
from edlm_jax.models.spec import ModelSpec
from edlm_jax.models.transformer import Transformer
from edlm_jax.training.metrics import DRIFT_GROUPS


def weight_drift(before: Transformer, after: Transformer) -> dict[str, dict[str, list[float]]]:
    """{group: {relative: |after - before| / |before| of each layer, cosine: ...}}, over all matrices of a group."""
    check_comparable(before.spec, after.spec)
    old, new = _layer_weights(before), _layer_weights(after)
    return jax.tree.map(lambda values_L: [float(value) for value in values_L], _drift(old, new))


def check_comparable(before: ModelSpec, after: ModelSpec) -> None:
    """Raises InputError for models whose layers have other shapes."""
    for name in ("num_layers", "width", "num_heads", "num_kv_heads", "head_dim", "ffn_width"):
        if getattr(before, name) != getattr(after, name):
            raise InputError(
                f"weight drift compares two models of one shape; these differ: {name} {getattr(before, name)} and "
                f"{getattr(after, name)}"
            )


def _layer_weights(model: Transformer) -> dict[str, dict[str, jax.Array]]:
    layers = nnx.to_pure_dict(nnx.state(model, nnx.Param))["layers"]
    return {group: {name: layers[name] for name in names} for group, names in DRIFT_GROUPS.items()}


@jax.jit
def _drift(old, new):
    drift = {}
    for group in DRIFT_GROUPS:
        difference = jax.tree.map(lambda a, b: b.astype("float32") - a.astype("float32"), old[group], new[group])
        norm_old, norm_new = _dot(old[group], old[group]) ** 0.5, _dot(new[group], new[group]) ** 0.5
        drift[group] = {
            "relative": _dot(difference, difference) ** 0.5 / norm_old,
            "cosine": _dot(old[group], new[group]) / (norm_old * norm_new),
        }
    return drift


def _dot(a, b):
    """The inner product per layer over all matrices of a group."""
    products = jax.tree.map(
        lambda x, y: (x.astype("float32") * y.astype("float32")).reshape(len(x), -1).sum(axis=1), a, b
    )
    return sum(jax.tree.leaves(products))
