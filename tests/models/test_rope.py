"""RoPE against transformers' own frequencies, and the rotation against complex numbers."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edlm_jax.errors import InputError
from edlm_jax.models.rope import Rope, inverse_frequencies, rotary_tables, rotate
from tests.seeds import fresh_rng

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rope.json").read_text())
IDS = [f"{case['rope_parameters']['rope_type']}{i}" for i, case in enumerate(GOLDEN)]


def apply_rope(x_BTNH, positions_BT, rope):
    return rotate(x_BTNH, *rotary_tables(positions_BT, rope, x_BTNH.shape[-1]))


@pytest.mark.parametrize("case", GOLDEN, ids=IDS)
def test_frequencies_are_those_of_transformers(case):
    config = {"rope_parameters": case["rope_parameters"], "max_position_embeddings": 131072}
    rope = Rope.from_hf(config, case["head_dim"])
    frequencies, factor = inverse_frequencies(rope, case["head_dim"])
    assert frequencies.dtype == np.float32
    np.testing.assert_allclose(frequencies, case["frequencies"], rtol=5e-7)
    np.testing.assert_allclose(factor, case["attention_factor"], rtol=1e-12)


@pytest.mark.parametrize("case", GOLDEN, ids=IDS)
def test_old_and_written_forms_mean_the_same(case):
    new = {"rope_parameters": case["rope_parameters"], "max_position_embeddings": 131072}
    scaling = {key: value for key, value in case["rope_parameters"].items() if key != "rope_theta"}
    scaling["type"] = scaling.pop("rope_type")
    theta = case["rope_parameters"]["rope_theta"]
    old = {"rope_theta": theta, "rope_scaling": scaling, "max_position_embeddings": 131072}
    rope = Rope.from_hf(new, case["head_dim"])
    assert Rope.from_hf(old, case["head_dim"]) == rope
    assert Rope.from_hf({"rope_parameters": rope.to_hf(), "max_position_embeddings": 7}, case["head_dim"]) == rope


def test_no_parameters_mean_plain_rope():
    assert Rope.from_hf({"rope_scaling": None}, 8) == Rope(theta=10_000.0)
    assert Rope.from_hf({"rope_theta": 5e5, "rope_scaling": None}, 8) == Rope(theta=5e5)


def test_yarn_without_original_length_scales_from_the_longest():
    rope = Rope.from_hf({"rope_scaling": {"type": "yarn", "factor": None}, "max_position_embeddings": 512}, 8)
    assert (rope.original_length, rope.factor, rope.attention_factor) == (512, 1.0, 1.0)
    outside = {"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}}
    assert Rope.from_hf(outside | {"original_max_position_embeddings": 128}, 8).original_length == 128


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "longrope"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "per layer type"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}, "max_position_embeddings": 8}, "low_freq_factor"),
        ({"rope_theta": -1.0}, "rope_theta"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_what_we_lack_is_refused_by_name(config, named):
    with pytest.raises(InputError, match=named):
        Rope.from_hf(config, 8)


def test_odd_head_size_is_refused():
    with pytest.raises(InputError, match="7 is odd"):
        Rope.from_hf({}, 7)


def test_rotation_multiplies_pairs_as_complex_numbers():
    rope = Rope(theta=100.0, kind="yarn", factor=4.0, original_length=32, attention_factor=1.3)
    rng = fresh_rng()
    x_BTNH = rng.normal(size=(2, 5, 3, 6)).astype(np.float32)
    positions_BT = rng.integers(0, 3000, (2, 5))
    frequencies, scale = inverse_frequencies(rope, 6)
    turn = scale * np.exp(1j * positions_BT[..., None, None] * frequencies.astype(np.float64))
    expected = (x_BTNH[..., :3] + 1j * x_BTNH[..., 3:]) * turn
    got = apply_rope(jnp.asarray(x_BTNH), jnp.asarray(positions_BT), rope)
    np.testing.assert_allclose(got, np.concatenate([expected.real, expected.imag], axis=-1), atol=2e-3)
    assert apply_rope(jnp.asarray(x_BTNH, jnp.bfloat16), jnp.asarray(positions_BT), rope).dtype == jnp.bfloat16


def test_scores_depend_on_distance_alone_even_far_out_in_bf16_activations():
    q, k = jax.random.normal(jax.random.key(3), (2, 1, 1, 1, 8), jnp.bfloat16)
    near = [apply_rope(x, jnp.full((1, 1), p), Rope()).astype(jnp.float32) for x, p in ((q, 9), (k, 2))]
    far = [apply_rope(x, jnp.full((1, 1), p), Rope()).astype(jnp.float32) for x, p in ((q, 3009), (k, 3002))]
    scale = float(jnp.linalg.norm(near[0]) * jnp.linalg.norm(near[1]))
    np.testing.assert_allclose(jnp.sum(near[0] * near[1]) / scale, jnp.sum(far[0] * far[1]) / scale, atol=2e-2)
