"""Adapters against the plain computation, on families with and without biases, in the loop and in the scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edlm_jax.attention import CleanContext
from edlm_jax.decoding import Decoder
from edlm_jax.errors import InputError
from edlm_jax.models.layer import layer_shapes
from edlm_jax.models.lora import ADAPTERS, Lora, combine, initial_adapters, merge, partition
from edlm_jax.models.transformer import Transformer
from tests.seeds import fresh_rng
from tests.training.tiny import random_model

LORA = Lora(rank=3, alpha=12.0)
FAMILIES = {"qwen3": {}, "biases, many layers": dict(attention_bias=True, num_hidden_layers=5)}


def adapted(model, b_is_zero=False):
    """(graph definition, parameters) of the model with adapters."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Transformer(model.spec, rngs=nnx.Rngs(0), lora=LORA)))
    params, spec = nnx.to_pure_dict(nnx.state(model, nnx.Param)), model.spec
    adapters = initial_adapters(jax.random.key(0), layer_shapes(spec), spec.num_layers, LORA)
    if not b_is_zero:
        rng = fresh_rng()
        adapters = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype), adapters)
    return graphdef, params | {"layers": params["layers"] | adapters}


def logits(model):
    tokens_BT = np.random.default_rng(3).integers(0, 90, (2, 16))
    return np.asarray(model(jnp.asarray(tokens_BT), pattern=CleanContext(8, 4)))


@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_adapters_change_nothing_and_trained_ones_merge(family):
    model = random_model(**FAMILIES[family])
    graphdef, params = adapted(model, b_is_zero=True)
    np.testing.assert_array_equal(logits(nnx.merge(graphdef, params)), logits(model))
    graphdef, params = adapted(model)
    unmerged = logits(nnx.merge(graphdef, params))
    assert np.abs(unmerged - logits(model)).max() > 0.1
    plain, _ = nnx.split(model)
    np.testing.assert_allclose(logits(nnx.merge(plain, merge(params, LORA))), unmerged, atol=2e-4)


def test_every_matrix_of_attention_and_ffn_is_adapted_by_its_own_product():
    model = random_model()
    _, params = adapted(model)
    before, after = params["layers"], merge(params, LORA)["layers"]
    assert set(before) - set(after) == {name for names in ADAPTERS.values() for name in names}
    flat = lambda name, first: np.asarray(before[name][1]).reshape(first, -1)  # noqa: E731
    for matrix, (a, b) in ADAPTERS.items():
        inputs = before[a][0].size // LORA.rank
        delta = flat(a, inputs) @ flat(b, LORA.rank) * 4.0
        moved = np.asarray(after[matrix][1] - before[matrix][1])
        np.testing.assert_allclose(moved.reshape(inputs, -1), delta, atol=1e-4, err_msg=matrix)


def test_what_is_trained():
    model = random_model(attention_bias=True, tie_word_embeddings=False)
    _, params = adapted(model)
    trained, frozen = partition(params, LORA)
    biases = {"q_bias_NH", "k_bias_KH", "v_bias_KH", "o_bias_D"}
    assert set(frozen["layers"]) == {*ADAPTERS, *biases} & set(params["layers"])
    assert {"embedding_VD", "head_DV", "final_norm_D"} < set(trained) and "mlp_norm_D" in trained["layers"]
    assert jax.tree.structure(combine(trained, frozen)) == jax.tree.structure(params)
    plain = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert partition(plain, None) == (plain, {}) and combine(plain, {}) is plain


def test_decoding_refuses_adapters_that_are_not_merged():
    with pytest.raises(InputError, match="not merged; read its run with load_trained"):
        Decoder(nnx.merge(*adapted(random_model())))
