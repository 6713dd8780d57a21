"""A bfloat16 model sums its gradients in float32: each parameter's is near the float32 model's, and has its dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from edlm_jax.attention import Causal, CleanContext
from edlm_jax.models import ModelSpec, Transformer
from edlm_jax.models.lora import Lora
from edlm_jax.parallel.sharding import MESH_AXES
from tests.conftest import TINY
from tests.seeds import fresh_rng

SPEC = ModelSpec.from_hf(TINY | {"vocab_size": 61})
UNTIED = ModelSpec.from_hf(TINY | {"vocab_size": 61, "tie_word_embeddings": False})
BOUND = 0.06  # of the norm of the difference over the norm; summed in bfloat16 the embedding's alone is over 0.4


def gradients(spec, dtype, pattern, tokens_BT, lora=None):
    """name -> gradient of the mean cross-entropy of the next tokens."""
    model = Transformer(spec, rngs=nnx.Rngs(0), dtype=dtype, lora=lora)
    if lora:  # B begins at zero, which would leave A without a gradient
        for name, param in vars(model.layers).items():
            if "_b_" in name:
                param[...] = 0.1 * jax.random.normal(jax.random.key(1), param.shape)
    graphdef, params = nnx.split(model)
    targets_BT = jnp.roll(tokens_BT, -1, axis=1)

    def loss(params):
        model = nnx.merge(graphdef, params)
        x_BTD = model.hidden(tokens_BT, pattern=pattern)
        return model.cross_entropy(x_BTD, targets_BT, jnp.ones(tokens_BT.shape, bool)).mean()

    found = nnx.to_pure_dict(jax.jit(jax.grad(loss))(params))
    return {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(found)}


def half_of_one(rng, B, T):
    """Tokens of which every second one, by chance, is the same: the mask token is such a one."""
    return jnp.asarray(np.where(rng.random((B, T)) < 0.5, 7, rng.integers(0, 61, (B, T))), jnp.int32)


def check(narrow, wide):
    assert narrow.keys() == wide.keys()
    for name, expected in wide.items():
        assert narrow[name].dtype == jnp.float32, name
        error = jnp.linalg.norm((narrow[name] - expected).ravel()) / jnp.linalg.norm(expected.ravel())
        assert error < BOUND, f"{name}: {error:.3f}"


def test_a_token_that_occurs_often_gets_all_that_is_sent_back():
    model = Transformer(SPEC, rngs=nnx.Rngs(0), dtype="bfloat16")
    graphdef, params = nnx.split(model)
    tokens_BT = jnp.full((4, 1024), 5)
    sums = jax.grad(lambda params: nnx.merge(graphdef, params).embed(tokens_BT).astype(jnp.float32).sum())(params)
    row_D = sums["embedding_VD"][...][5]
    np.testing.assert_array_equal(row_D, np.full(row_D.shape, 4096.0, np.float32))


@pytest.mark.parametrize("spec", [SPEC, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("lora", [None, Lora(4, 8.0)], ids=["full", "adapters"])
def test_every_gradient_is_near_the_float32_one(spec, lora):
    rng = fresh_rng()
    pattern = CleanContext(512, 16) if lora is None else Causal()
    tokens_BT = half_of_one(rng, 4, 1024)
    check(*(gradients(spec, dtype, pattern, tokens_BT, lora) for dtype in ("bfloat16", "float32")))


@pytest.mark.parametrize("shape", [(2, 2, 1, 1), (1, 2, 2, 1), (1, 2, 1, 2)], ids=str)
def test_on_a_mesh_too(shape):
    tokens_BT = half_of_one(fresh_rng(), 4, 512)
    wide = gradients(SPEC, "float32", Causal(), tokens_BT)
    with jax.set_mesh(jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * 4)):
        check(gradients(SPEC, "bfloat16", Causal(), tokens_BT), wide)
