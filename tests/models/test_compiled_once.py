"""A public function that is called again with what it has seen before compiles nothing, nor is it traced."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

import edlm_jax
from edlm_jax.attention import Bidirectional, BlockCausal, Causal, CleanContext
from edlm_jax.decoding import MODES
from edlm_jax.diffusion import corrupt, diffusion_loss
from edlm_jax.evaluation.embedding import embed
from edlm_jax.evaluation.likelihood import log_likelihood
from edlm_jax.evaluation.mteb import Encoder
from edlm_jax.models import Conversion
from edlm_jax.parallel.sharding import MESH_AXES, param_shardings
from tests.compilations import twice
from tests.training.tiny import MASK_ID, random_model

TOKENS = np.arange(32, dtype=np.int32).reshape(2, 16)
PATTERNS = {
    "causal": Causal,
    "bidirectional": Bidirectional,
    "blocks": lambda: BlockCausal(4),
    "two streams": lambda: CleanContext(8, 4),
    "two views": lambda: CleanContext(4, 2, "token_causal", noisy_length=12),
    "two streams, padded": lambda: CleanContext(8, 3),
}
SETTINGS = {"sampling": dict(temperature=1.0, top_k=3), "a watcher": dict(on_block=lambda tokens: None)}
@pytest.fixture(scope="module")
def model():
    """Six layers: they are scanned."""
    model = random_model(num_hidden_layers=6)
    model.spec = dataclasses.replace(
        model.spec, conversion=Conversion(MASK_ID, 4, "clean_context", "same_position", "block_causal")
    )
    return model


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_forward_pass(model, pattern, dtype):
    model.dtype = dtype
    try:
        assert not twice(lambda: model(TOKENS, pattern=PATTERNS[pattern]()))
    finally:
        model.dtype = "float32"


def test_its_parts_and_its_gradient(model):
    graphdef, params = nnx.split(model)
    x_BTD = jnp.ones((2, 16, 32))
    assert not twice(lambda: model.hidden(TOKENS, pattern=Causal(), remat="full", columns=7))
    assert not twice(lambda: model.logits(x_BTD))
    assert not twice(lambda: model.cross_entropy(x_BTD, TOKENS, TOKENS > 3))
    assert not twice(lambda: jax.grad(lambda params: nnx.merge(graphdef, params)(TOKENS).std())(params))


def test_on_a_mesh(model):
    mesh = jax.make_mesh((1, 2, 2, 2), MESH_AXES, axis_types=(AxisType.Auto,) * 4)
    graphdef, params = nnx.split(model)
    params = nnx.to_pure_dict(params)
    with jax.set_mesh(mesh):
        split = nnx.merge(graphdef, jax.device_put(params, param_shardings(mesh, params)))
        assert not twice(lambda: split(TOKENS, pattern=BlockCausal(4)))


@pytest.mark.parametrize("half_life", [0.1, 0.0, float("inf"), None])
def test_noise_and_loss(half_life):
    def noise_and_loss():
        sizes = dict(block_length=4, mask_id=MASK_ID, half_life=half_life)
        _, masked_BL, level_BL = corrupt(jax.random.key(1), jnp.asarray(TOKENS), jnp.asarray(TOKENS > 3), **sizes)
        diffusion_loss(jnp.ones((2, 16, 97)), jnp.asarray(TOKENS), masked_BL, level_BL)

    assert not twice(noise_and_loss)


@pytest.mark.filterwarnings("ignore:.*reads next tokens from a causal stream")
@pytest.mark.parametrize("mode", MODES)
def test_generation_in_every_mode(model, mode):
    assert not twice(lambda: edlm_jax.generate(model, [[1, 2, 3], [4]], max_new_tokens=8, mode=mode))


@pytest.mark.parametrize("settings", SETTINGS)
def test_generation(model, settings):
    assert not twice(lambda: edlm_jax.generate(model, [[1, 2, 3], [4]], max_new_tokens=8, **SETTINGS[settings]))


@pytest.mark.parametrize("mode", ["ar", "diffusion"])
def test_likelihoods(model, mode):
    assert not twice(lambda: log_likelihood(model, [([1, 2], [3, 4]), ([1], [2])], mode=mode, num_samples=4))


def test_embeddings(model, tiny_ar_dir):
    assert not twice(lambda: embed(model, [[1, 2, 3], [4, 5]], pattern=Causal()))
    encoders = iter([Encoder(str(tiny_ar_dir), dtype="float32") for _ in range(2)])
    assert not twice(lambda: next(encoders).encode(["a text", "another one"]))
