"""Divergences and certainty against their formulas in float64, values and gradients, also on meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from edlm_jax.models.column_losses import Certainty, Divergence, Shares
from edlm_jax.models.head import column_loss
from edlm_jax.parallel.sharding import MESH_AXES
from tests.seeds import fresh_rng

B, T, D, V = 4, 26, 8, 132


def naive_divergence(x_BTD, head_DV, case, best):
    log_q = jax.nn.log_softmax(x_BTD @ head_DV)
    logits = jax.lax.stop_gradient(case["teacher_BTD"] @ head_DV)
    log_p, q = jax.nn.log_softmax(logits), jnp.exp(log_q)
    p = jnp.exp(log_p)
    kept = logits >= jnp.sort(logits)[..., -best :][..., :1] if best else True
    return jnp.abs(p - q).sum(-1) / 2, jnp.where(kept, p * (log_p - log_q), 0).sum(-1)


def naive_certainty(x_BTD, head_DV, case, _):
    log_q = jax.nn.log_softmax(x_BTD @ head_DV)
    right = log_q.argmax(-1) == case["targets_BT"]
    return (jnp.where(right, -(jnp.exp(log_q) * log_q).sum(-1), 0),)


def naive_shares(x_BTD, head_DV, case, _):
    log_q = jax.nn.log_softmax(x_BTD @ head_DV)
    return (-(case["shares_BTK"] * jnp.take_along_axis(log_q, case["tokens_BTK"], axis=-1)).sum(-1),)


CASES = {
    "divergence": (Divergence(), naive_divergence, "teacher_BTD"),
    "divergence, 5 best": (Divergence(5), naive_divergence, "teacher_BTD"),
    "certainty": (Certainty(), naive_certainty, "targets_BT"),
    "shares of 3 tokens": (Shares(), naive_shares, None),
}


@pytest.mark.parametrize("mesh", [(1, 1, 1, 1), (1, 4, 1, 1), (1, 2, 2, 1), (1, 1, 2, 2)], ids=str)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_formula_in_float64(name, frozen, mesh):
    loss, naive, argument = CASES[name]
    rng = fresh_rng()
    x_BTD, head_DV, teacher_BTD = (rng.normal(size=shape) for shape in ((B, T, D), (D, V), (B, T, D)))
    teacher_BTD = teacher_BTD + x_BTD
    best_BT = (x_BTD @ head_DV).argmax(-1)
    case = dict(
        teacher_BTD=teacher_BTD, targets_BT=np.where(rng.random((B, T)) < 0.5, best_BT, rng.integers(0, V, (B, T)))
    )
    case |= dict(tokens_BTK=rng.permuted(np.tile(np.arange(V), (B, T, 1)), axis=2)[..., :3])
    case |= dict(shares_BTK=rng.uniform(0, 0.5, (B, T, 3)))  # of any sum
    wanted_BT = rng.random((B, T)) < 0.5
    weights = rng.normal(size=(2 if isinstance(loss, Divergence) else 1, B, T))

    def summed(function, dtype):
        def total(x_BTD, head_DV):
            values = [jnp.where(wanted_BT, value, 0) for value in function(x_BTD, head_DV)]
            return sum((w * value).sum() for w, value in zip(weights.astype(dtype), values, strict=True)), values

        slope = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
        return slope(x_BTD.astype(dtype), head_DV.astype(dtype))

    taken = {argument: argument} if argument else {"targets_BT": "tokens_BTK", "teacher_BTD": "shares_BTK"}
    kinds = {"targets_BT": jnp.int32, "teacher_BTD": jnp.float32}
    given = {name: jnp.asarray(case[source], kinds[name]) for name, source in taken.items()}
    ours = lambda x_BTD, head_DV: column_loss(loss, x_BTD, head_DV, wanted_BT, **given, frozen=frozen)  # noqa: E731
    devices = jax.devices()[: np.prod(mesh)]
    with jax.set_mesh(jax.make_mesh(mesh, MESH_AXES, axis_types=(AxisType.Auto,) * 4, devices=devices)):
        (_, values), gradients = jax.device_get(summed(ours, np.float32))
    with jax.enable_x64(True):
        (_, exact), slopes = summed(lambda x, head: naive(x, head, case, getattr(loss, "best", 0)), np.float64)
    if frozen:
        slopes = slopes[0], np.zeros((D, V))
    for a, b in zip([*values, *gradients], [*exact, *slopes], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()))
    assert all(np.abs(value).max() > 0.01 for value in exact)
