"""Every parameter's gradient counts the tokens that it has met, with activations in bfloat16 and on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from edlm_jax.models.layer import _with_bias, rms_norm
from edlm_jax.models.product import look_up, project, rounded
from edlm_jax.parallel.sharding import MESH_AXES, constrain
from tests.seeds import fresh_rng

B, T = 8, 513  # of which bfloat16 holds neither the product nor T
ONES = jnp.ones((B, T, 8), jnp.bfloat16)
MESHES = [None, (1, 8, 1, 1), (2, 2, 2, 1), (2, 2, 1, 2)]
USES = {
    "a matrix": (lambda w, x: project(x, w), (8, 4)),
    "a matrix that widens": (lambda w, x: project(x, w), (8, 16)),
    "a matrix of heads": (lambda w, x: project(x, w), (8, 2, 4)),
    "a matrix of summed heads": (lambda w, x: project(x.reshape(B, T, 2, 4), w, summed=2), (2, 4, 8)),
    "a head": (lambda w, x: project(x, w, dtype=jnp.float32), (8, 32)),
    "a bias": (lambda w, x: _with_bias(x, w), (8,)),
    "a scale": (lambda w, x: rms_norm(x, w, 0.0), (8,)),
    "a table": (lambda w, x: look_up(w, jnp.zeros((B, T), jnp.int32), x.dtype), (1, 8)),
}


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("use", USES)
def test_gradients_count_tokens(use, mesh):
    function, shape = USES[use]

    @jax.jit
    def gradient(w, x_BTD):
        return jax.grad(lambda w: function(w, constrain(x_BTD, "BL_")).astype(jnp.float32).sum())(w)

    if mesh is None:
        found = gradient(jnp.zeros(shape), ONES)
    else:
        with jax.set_mesh(jax.make_mesh(mesh, MESH_AXES, axis_types=(AxisType.Auto,) * 4)):
            found = gradient(jnp.zeros(shape), ONES)
    np.testing.assert_array_equal(found, np.full(shape, B * T, np.float32))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_are_those_of_parameters_that_were_rounded_before(dtype):
    rng = fresh_rng()
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    x_BTD, tokens_BT = draw(2, 5, 8).astype(dtype), rng.integers(0, 9, (2, 5))
    w_DF, w_D, table_VD = draw(8, 16), draw(8), draw(9, 8)
    pairs = {
        "a product": (project(x_BTD, w_DF), x_BTD @ w_DF.astype(dtype)),
        "a sum": (_with_bias(x_BTD, w_D), x_BTD + w_D.astype(dtype)[None, None]),
        "a scale": (rms_norm(x_BTD, w_D, 1e-6), rms_norm(x_BTD, w_D.astype(dtype), 1e-6)),
        "a rounded vector": (rounded(w_D, dtype), w_D.astype(dtype).astype(jnp.float32)),
        "a lookup": (look_up(table_VD, tokens_BT, dtype), table_VD.astype(dtype)[tokens_BT]),
    }
    for name, (ours, theirs) in pairs.items():
        assert ours.dtype == theirs.dtype, name
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
