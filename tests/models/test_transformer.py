"""The decoder: packed equals apart, block length 1 is causal, remat changes nothing, shardings follow names."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from edlm_jax.attention import BlockCausal, Causal, CleanContext
from edlm_jax.errors import InputError
from edlm_jax.models import ModelSpec, Transformer
from edlm_jax.parallel.sharding import MESH_AXES, named_sharding, param_shardings
from tests.seeds import fresh_rng

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 53,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "max_position_embeddings": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
}


GEMMA = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "head_dim": 8,
    "sliding_window": 5,
    "sliding_window_pattern": 2,
    "query_pre_attn_scalar": 5,
}
MODELS = {"written out": {"num_hidden_layers": 2}, "scanned": {"num_hidden_layers": 5}}
MODELS["in turns"] = MODELS["scanned"] | GEMMA
MODELS["one turn"] = GEMMA | {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}
MODELS["one turn"] |= {"num_hidden_layers": 3}


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def model(request):
    spec = ModelSpec.from_hf(CONFIG | request.param)
    model = Transformer(spec, rngs=nnx.Rngs(int(fresh_rng().integers(1000))))
    for name in ("q_DNH", "k_DKH"):  # so that it matters who is seen
        getattr(model.layers, name)[...] = getattr(model.layers, name)[...] * 10
    return model


@pytest.mark.parametrize("pattern", [Causal(), BlockCausal(3)])
def test_packed_documents_give_the_logits_of_the_documents_alone(model, pattern):
    rng = fresh_rng()
    lengths, columns = (5, 9, 4), (0, 6, 15)  # starts on the grid of 3; the gaps are padding
    tokens, segments, positions = (np.zeros((1, 21), np.int32) for _ in range(3))
    for index, (length, start) in enumerate(zip(lengths, columns, strict=True)):
        tokens[0, start : start + length] = rng.integers(0, 53, length)
        segments[0, start : start + length] = index + 1
        positions[0, start : start + length] = np.arange(length)
    packed = model(tokens, pattern=pattern, positions_BT=positions, segment_ids_BT=segments)
    for length, start in zip(lengths, columns, strict=True):
        alone = model(tokens[:, start : start + length], pattern=pattern)
        np.testing.assert_allclose(packed[:, start : start + length], alone, atol=2e-6, rtol=2e-5)


def test_block_length_one_is_the_ar_model(model):
    tokens = fresh_rng().integers(0, 53, (2, 13))
    np.testing.assert_allclose(model(tokens, pattern=BlockCausal(1)), model(tokens), atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("clean", ["block_causal", "token_causal"])
def test_what_the_last_layer_leaves_out_changes_nothing(model, clean):
    rng, pattern = fresh_rng(), CleanContext(12, 4, clean)
    tokens, segments = rng.integers(0, 53, (2, 24)), np.tile(np.repeat([1, 2], [8, 4]), (2, 2))
    graphdef, state = nnx.split(model)
    weights_BTD = rng.normal(size=(2, 12, 24))

    def total(state, columns, remat="none"):
        hidden = nnx.merge(graphdef, state).hidden
        x_BTD = hidden(tokens, pattern=pattern, segment_ids_BT=segments, columns=columns, remat=remat)
        return (x_BTD[:, :12] * weights_BTD).sum()

    gradient = jax.jit(jax.value_and_grad(total), static_argnums=(1, 2))
    near = lambda x: 3e-5 * max(1, np.abs(x).max())  # noqa: E731
    expected = gradient(state, None)
    for remat in ("none", "full"):
        got = gradient(state, 12, remat)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=near(b), rtol=3e-4), got, expected)


def test_the_clean_stream_is_the_block_causal_model(model):
    tokens = fresh_rng().integers(0, 53, (2, 12))
    two = model(np.concatenate([np.zeros_like(tokens), tokens], axis=1), pattern=CleanContext(12, 4))
    np.testing.assert_allclose(two[:, 12:], model(tokens, pattern=BlockCausal(4)), atol=2e-6, rtol=2e-5)


def test_a_noisy_block_is_one_behind_its_clean_columns(model):
    """A row of one stream, in which columns are positions: the two streams' window is the one that it has."""
    rng = fresh_rng()
    noisy, clean = rng.integers(0, 53, (2, 2, 12))
    two = model(np.concatenate([noisy, clean], axis=1), pattern=CleanContext(12, 4))
    for start in (0, 4, 8):
        row = np.concatenate([clean[:, :start], noisy[:, start : start + 4], clean[:, start + 4 :]], axis=1)
        alone = model(row, pattern=BlockCausal(4))[:, start : start + 4]
        np.testing.assert_allclose(two[:, start : start + 4], alone, atol=2e-5, rtol=2e-4)


def test_a_window_bounds_what_a_token_depends_on():
    """Two layers that both slide over 3 positions: column 9 sees 5 on."""
    config = CONFIG | GEMMA | {"sliding_window": 3, "layer_types": ["sliding_attention"] * 2}
    model = Transformer(ModelSpec.from_hf(config), rngs=nnx.Rngs(0))
    tokens = fresh_rng().integers(0, 52, (1, 10))
    changed = np.where(np.eye(10, dtype=bool), 52, tokens)  # row t has another token in column t
    moved = np.abs(np.asarray(model(changed)[:, 9] - model(tokens)[:, 9])).max(axis=-1)
    assert np.flatnonzero(moved > 1e-5).tolist() == [5, 6, 7, 8, 9]


def test_embeddings_are_scaled_as_transformers_does():
    spec = ModelSpec.from_hf(CONFIG | GEMMA)
    for dtype, scale in (("float32", np.sqrt(np.float32(24))), ("bfloat16", 4.90625)):
        model = Transformer(spec, rngs=nnx.Rngs(0), dtype=dtype)
        expected = model.embedding_VD[...].astype(dtype)[np.arange(3)] * jax.numpy.asarray(scale, dtype)
        np.testing.assert_array_equal(model.embed(np.arange(3)[None])[0], expected)


@pytest.mark.parametrize("remat", ["full", "dots", "save_attention"])
def test_remat_gives_the_same_gradient(model, remat):
    graphdef, state = nnx.split(model)
    tokens = fresh_rng().integers(0, 53, (1, 8))

    def gradient(remat):
        total = lambda state: nnx.merge(graphdef, state).hidden(tokens, pattern=Causal(), remat=remat).std()  # noqa: E731
        return jax.tree.leaves(jax.jit(jax.grad(total))(state))

    for ours, reference in zip(gradient(remat), gradient("none"), strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-6, rtol=1e-4)
    assert any(np.abs(leaf).max() > 0 for leaf in gradient(remat))


def test_unknown_remat_is_refused(model):
    with pytest.raises(InputError, match="none, dots, save_attention, full"):
        model.hidden(np.zeros((1, 2), int), pattern=Causal(), remat="some")


def test_computing_in_bfloat16_keeps_float32_logits_and_weights():
    model = Transformer(ModelSpec.from_hf(CONFIG), rngs=nnx.Rngs(0), dtype="bfloat16")
    assert model(np.zeros((1, 3), int)).dtype == np.float32
    assert model.embedding_VD[...].dtype == np.float32
    assert model.embed(np.zeros((1, 3), int)).dtype == "bfloat16"


def test_shardings_follow_the_shape_in_the_name(model):
    mesh = jax.make_mesh((1, 1, 1, 1), MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * 4)
    assert named_sharding(mesh, "q_DNH", (5, 8, 4, 2)).spec == P(None, "fsdp", "tensor", None)
    assert named_sharding(mesh, "embedding_VD", (8, 6)).spec == P("tensor", "fsdp")
    specs = jax.tree.map(lambda sharding: sharding.spec, nnx.to_pure_dict(param_shardings(mesh, nnx.split(model)[1])))
    assert specs["layers"]["down_FD"] == P(None, "tensor", "fsdp")
    assert specs["final_norm_D"] == P("fsdp")
