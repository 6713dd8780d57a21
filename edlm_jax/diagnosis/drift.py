"""How far conversion moved the weights: relative Frobenius norm and cosine per layer, attention and FFN apart."""

import jax
from flax import nnx

from edlm_jax.errors import InputError
from edlm_jax.models.spec import ModelSpec
from edlm_jax.models.transformer import Transformer
from edlm_jax.training.metrics import drift_products


def weight_drift(before: Transformer, after: Transformer) -> dict[str, dict[str, list[float]]]:
    """{group: {relative: |after - before| / |before| of each layer, cosine: ...}}, over all matrices of a group."""
    check_comparable(before.spec, after.spec)
    layers = [nnx.to_pure_dict(nnx.state(model, nnx.Param))["layers"] for model in (before, after)]
    return jax.tree.map(lambda values_L: [float(value) for value in values_L], _drift(*layers))


def check_comparable(before: ModelSpec, after: ModelSpec) -> None:
    """Raises InputError for models whose layers have other shapes."""
    for name in ("num_layers", "width", "num_heads", "num_kv_heads", "head_dim", "ffn_width"):
        if getattr(before, name) != getattr(after, name):
            raise InputError(
                f"weight drift compares two models of one shape; these differ: {name} {getattr(before, name)} and "
                f"{getattr(after, name)}"
            )


@jax.jit
def _drift(before, after):
    return {
        group: {
            "relative": p["moved"] ** 0.5 / p["before"] ** 0.5,
            "cosine": p["both"] / (p["before"] ** 0.5 * p["after"] ** 0.5),
        }
        for group, p in drift_products(before, after).items()
    }
