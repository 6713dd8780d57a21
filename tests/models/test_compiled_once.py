"""Public calls of a model outside `jax.jit` compile at their first call alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

import edlm_jax
from edlm_jax.attention import BlockCausal, Causal, CleanContext
from edlm_jax.diffusion import corrupt
from edlm_jax.evaluation.embedding import embed
from edlm_jax.evaluation.likelihood import log_likelihood
from edlm_jax.models import ModelSpec, Transformer
from edlm_jax.parallel.sharding import MESH_AXES
from tests.conftest import TINY
from tests.decoding.tiny import make_model

COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: COMPILED.append(event) if event.endswith("backend_compile_duration") else None
)


def compilations(call) -> int:
    """How many programs are compiled when it is called again."""
    jax.block_until_ready(call())
    before = len(COMPILED)
    jax.block_until_ready(call())
    return len(COMPILED) - before


def test_the_counter_sees_what_is_compiled():
    before = len(COMPILED)
    jax.jit(lambda x: x * 3 + 1)(jnp.ones(7))
    assert len(COMPILED) > before


@pytest.mark.parametrize("pattern", [Causal(), BlockCausal(4), CleanContext(8, 4)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_forward_called_twice_compiles_once(pattern, dtype):
    model = Transformer(ModelSpec.from_hf(TINY), rngs=nnx.Rngs(0), dtype=dtype)
    tokens_BT = jnp.ones((1, 16), jnp.int32)
    assert compilations(lambda: model(tokens_BT, pattern=pattern)) == 0
    assert compilations(lambda: model(tokens_BT, pattern=type(pattern)(**vars(pattern)))) == 0  # an equal value
    x_BTD = model.hidden(tokens_BT, pattern=pattern)
    assert compilations(lambda: model.cross_entropy(x_BTD, tokens_BT, tokens_BT > 0)) == 0
    model.embedding_VD[...] = model.embedding_VD[...] * 2  # other weights are no other program
    before, logits = len(COMPILED), model(tokens_BT, pattern=pattern)
    assert len(COMPILED) == before and bool(jnp.isfinite(logits).all())


def test_on_a_mesh_too():
    with jax.set_mesh(jax.make_mesh((1, 2, 2, 2), MESH_AXES, axis_types=(AxisType.Auto,) * 4)):
        model = Transformer(ModelSpec.from_hf(TINY), rngs=nnx.Rngs(0))
        assert compilations(lambda: model(jnp.ones((2, 16), jnp.int32), pattern=CleanContext(8, 4))) == 0


def test_other_public_calls():
    model, rows = make_model("shifted"), [[1, 2, 3, 4, 5], [3, 4, 5]]
    assert compilations(lambda: embed(model, rows, pattern=Causal())) == 0
    assert compilations(lambda: [s.log_likelihood for s in log_likelihood(model, [(rows[0], rows[1])])]) == 0
    assert compilations(lambda: edlm_jax.generate(model, rows, max_new_tokens=4).tokens) == 0
    tokens_BL = np.ones((2, 8), np.int32)
    how = dict(block_length=4, mask_id=60)
    assert compilations(lambda: corrupt(jax.random.key(0), tokens_BL, tokens_BL > 0, **how)) == 0
