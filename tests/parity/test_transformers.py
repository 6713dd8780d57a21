"""Live against torch and transformers, on fresh random models: `make test-parity`.

The imports are at the top on purpose: where torch is missing these tests fail, they are not skipped.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import AutoConfig, AutoModelForCausalLM

from edlm_jax import load_pretrained, save_pretrained
from edlm_jax.diffusion import diffusion_loss
from edlm_jax.models.rope import Rope, inverse_frequencies
from edlm_jax.models.spec import Conversion
from edlm_jax.pretrained.layout import places

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
import make_golden  # noqa: E402

pytestmark = pytest.mark.parity
SEED = int(np.random.default_rng().integers(1 << 30))
LONG = 2112
SCALED = ("qwen2_yarn", "llama3", "llama_linear")


@pytest.fixture(autouse=True)
def say_the_seed():
    print(f"SEED = {SEED}")  # shown with a failure, to repeat it


def load_theirs(directory: Path):
    return AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32)


def forward(model, tokens: np.ndarray, positions: np.ndarray | None = None) -> np.ndarray:
    run = nnx.jit(lambda model, tokens_BT, positions_BT: model(tokens_BT, positions_BT=positions_BT))
    return np.asarray(run(model, jnp.asarray(tokens), None if positions is None else jnp.asarray(positions)))


@pytest.mark.parametrize("name", make_golden.CASES)
def test_logits_there_and_back(name, tmp_path):
    """transformers -> us -> transformers: the same logits at all three, and the same weights bitwise."""
    theirs = make_golden.make_model(name, SEED)
    make_golden.save(theirs, name, tmp_path / "theirs")
    tokens, positions = make_golden.draw_inputs(name, SEED)
    expected = make_golden.logits(theirs, tokens, positions)
    ours = load_pretrained(tmp_path / "theirs", "float32")
    np.testing.assert_allclose(forward(ours, tokens, positions), expected, atol=2e-4, rtol=0)

    ours.spec = dataclasses.replace(ours.spec, conversion=Conversion(mask_token_id=66, block_length=8))
    save_pretrained(ours, tmp_path / "ours", dtype=make_golden.CASES[name][3])
    config = AutoConfig.from_pretrained(tmp_path / "ours")
    assert str(config.dtype) == f"torch.{make_golden.CASES[name][3]}" and config.edlm["block_length"] == 8
    back = load_theirs(tmp_path / "ours")
    assert type(back) is type(theirs)
    for (path, one), (_, other) in zip(back.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(one, other), path
    np.testing.assert_array_equal(make_golden.logits(back, tokens, positions), expected)


@pytest.mark.parametrize("name", make_golden.CASES)
def test_old_config_means_the_same_to_transformers(name, tmp_path):
    """The old form that the tests read is one that transformers reads likewise."""
    theirs = make_golden.make_model(name, SEED)
    make_golden.save(theirs, name, tmp_path)
    (tmp_path / "config.json").write_text((GOLDEN / name / "config_old.json").read_text())
    old = load_theirs(tmp_path)
    tokens, positions = make_golden.draw_inputs(name, SEED)
    np.testing.assert_array_equal(
        make_golden.logits(old, tokens, positions), make_golden.logits(theirs, tokens, positions)
    )


@pytest.mark.parametrize("name", SCALED)
def test_long_rows_past_2048(name, tmp_path):
    theirs = make_golden.make_model(name, SEED)
    make_golden.save(theirs, name, tmp_path)
    tokens = np.random.default_rng(SEED).integers(0, 67, (1, LONG))
    expected = make_golden.logits(theirs, tokens, np.arange(LONG)[None])
    logits = forward(load_pretrained(tmp_path, "float32"), tokens)
    np.testing.assert_allclose(logits, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", make_golden.CASES)
def test_golden_files_are_what_transformers_computes_now(name):
    kept = np.load(GOLDEN / name / "expected.npz")
    theirs = load_theirs(GOLDEN / name)
    logits = make_golden.logits(theirs, kept["tokens"].astype(np.int64), kept["positions"].astype(np.int64))
    np.testing.assert_allclose(logits[:, kept["columns"]], kept["logits"], atol=5e-5, rtol=0)


@pytest.mark.parametrize(("head_dim", "rope"), make_golden.ROPES)
def test_rope_frequencies(head_dim, rope):
    expected, factor = make_golden.frequencies(head_dim, rope)
    ours = Rope.from_hf({"rope_parameters": rope, "max_position_embeddings": 131072}, head_dim)
    frequencies, scale = inverse_frequencies(ours, head_dim)
    np.testing.assert_allclose(frequencies, expected, rtol=5e-7)
    np.testing.assert_allclose(scale, factor, rtol=1e-12)


def test_losses_are_those_of_torch():
    rng = np.random.default_rng(SEED)
    logits_BLV = rng.normal(size=(3, 7, 101)).astype(np.float32) * 5
    targets_BL = rng.integers(0, 101, (3, 7))
    masked_BL = rng.random((3, 7)) < 0.6
    level_BL = rng.uniform(1e-3, 1, (3, 7)).astype(np.float32)
    logits, targets = torch.from_numpy(logits_BLV).double().flatten(0, 1), torch.from_numpy(targets_BL).flatten()
    ce = torch.nn.functional.cross_entropy(logits, targets, reduction="none").view(3, 7).numpy()
    expected = (ce / level_BL * masked_BL).sum()
    arrays = (jnp.asarray(array) for array in (logits_BLV, targets_BL, masked_BL, level_BL))
    total, weight = diffusion_loss(*arrays)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert int(weight) == masked_BL.sum()


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "smollm3"])
def test_gradients_of_the_ar_loss_are_those_of_torch(name, tmp_path):
    """The whole model backwards: every parameter's gradient, through the same layout as its weights."""
    theirs = make_golden.make_model(name, SEED)
    make_golden.save(theirs, name, tmp_path)
    theirs.get_input_embeddings().padding_idx = None  # else torch gives the embedding of token 0 no gradient
    tokens = np.random.default_rng(SEED).integers(0, 67, (2, 9))
    ids = torch.from_numpy(tokens)
    theirs(input_ids=ids, labels=ids).loss.backward()

    def loss(model):
        log_p_BTV = jax.nn.log_softmax(model(jnp.asarray(tokens))[:, :-1])
        return -jnp.mean(jnp.take_along_axis(log_p_BTV, jnp.asarray(tokens)[:, 1:, None], axis=-1))

    model = load_pretrained(tmp_path, "float32")
    grads = dict(nnx.to_flat_state(nnx.jit(nnx.grad(loss))(model)))
    gradients = {path: parameter.grad.numpy() for path, parameter in theirs.named_parameters()}
    for place in places(model.spec):
        for layer, path in enumerate(place.hf_names):
            ours = np.asarray(grads[place.path][...])
            ours = place.write(ours[layer] if place.num_layers else ours)
            scale = np.abs(gradients[path]).max()
            np.testing.assert_allclose(ours, gradients[path], atol=1e-4 * scale, rtol=0, err_msg=path)
