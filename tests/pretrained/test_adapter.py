"""Adapters of noisy columns on disk: beside a model that is untouched, and with no other."""

import json
import shutil

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from edlm_jax.errors import InputError
from edlm_jax.models.lora import Lora
from edlm_jax.pretrained import load_pretrained, save_pretrained
from tests.models.test_gated import with_adapters
from tests.seeds import fresh_rng
from tests.training.tiny import random_model

LORAS = {"all": Lora(3, 12.0, "noisy"), "some": Lora(2, 1.0, "noisy", ("v_proj", "o_proj", "down_proj"))}


def drafter(how, **changes):
    model = random_model(num_attention_heads=6, num_hidden_layers=3, **changes)  # N * H is not D
    return model, nnx.merge(*with_adapters(model, how))


@pytest.mark.parametrize("which", LORAS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_comes_back_and_the_model_is_what_it_was_without(tmp_path, which, dtype):
    base, model = drafter(LORAS[which])
    save_pretrained(model, tmp_path / "drafter", dtype=dtype)
    save_pretrained(base, tmp_path / "base", dtype=dtype)
    for path in sorted((tmp_path / "base").iterdir()):
        assert (tmp_path / "drafter" / path.name).read_bytes() == path.read_bytes()
    again = load_pretrained(tmp_path / "drafter", "float32")
    assert again.layers.lora == LORAS[which]
    names = {path[-1]: x for path, x in nnx.to_flat_state(nnx.state(again, nnx.Param))}
    for path, x in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        kept = x[...] if "_a_" in path[-1] or "_b_" in path[-1] else x[...].astype(dtype)
        np.testing.assert_array_equal(names[path[-1]][...], kept, err_msg=path[-1])


def test_an_adapter_is_the_product_of_peft(tmp_path):
    """W + alpha / r B A on columns that all are noisy, by the names and shapes that peft has."""
    _, model = drafter(LORAS["some"])
    save_pretrained(model, tmp_path / "drafter")
    described = json.loads((tmp_path / "drafter/adapter/adapter_config.json").read_text())
    assert described["r"] == 2 and described["lora_alpha"] == 1.0 and described["peft_type"] == "LORA"
    tensors = load_file(tmp_path / "drafter/adapter/adapter_model.safetensors")
    module = "base_model.model.model.layers.1.self_attn.o_proj.lora_"
    a, b = tensors[f"{module}A.weight"], tensors[f"{module}B.weight"]
    assert a.shape == (2, 48) and b.shape == (32, 2)
    x_NH = fresh_rng().normal(size=48)
    ours = x_NH @ np.asarray(model.layers.o_a_NHR[1]).reshape(48, 2) @ np.asarray(model.layers.o_b_RD[1])
    np.testing.assert_allclose(b @ (a @ x_NH), ours, rtol=1e-5)


def refused(directory, reason):
    with pytest.raises(InputError, match=reason):
        load_pretrained(directory)


def test_beside_another_model_it_is_refused(tmp_path):
    _, model = drafter(LORAS["some"])
    save_pretrained(model, tmp_path / "drafter")
    for name, changes in (("other", {}), ("wider", dict(intermediate_size=64))):
        save_pretrained(drafter(LORAS["some"], **changes)[0], tmp_path / name)
        shutil.copytree(tmp_path / "drafter/adapter", tmp_path / name / "adapter")
    refused(tmp_path / "other", "adapter holds adapters that were trained on another model; put that beside it")
    refused(tmp_path / "wider", "lora_A.weight has shape")


def test_what_is_damaged_is_refused(tmp_path):
    _, model = drafter(LORAS["some"])
    save_pretrained(model, tmp_path / "drafter")
    adapter = tmp_path / "drafter" / "adapter"
    config, weights = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"
    tensors, described = load_file(weights), json.loads(config.read_text())
    save_file(tensors, weights)  # without what it was trained on
    refused(tmp_path / "drafter", "trained on another model")
    save_file({name: x for name, x in tensors.items() if "layers.2.mlp" not in name}, weights)
    refused(tmp_path / "drafter", "tensor base_model.model.model.layers.2.mlp.down_proj.lora_A.weight is missing")
    config.write_text(json.dumps(described | {"target_modules": ["lm_head"]}))
    refused(tmp_path / "drafter", "^[^ ]*adapter_config.json: target_modules are not all among q_proj")
    config.write_text("{}")
    refused(tmp_path / "drafter", "does not describe adapters of peft's")


def test_formats_without_a_place_for_it_and_adapters_of_all_columns_are_refused(tmp_path):
    _, model = drafter(LORAS["all"])
    with pytest.raises(InputError, match="'sdar' has no place for adapters"):
        save_pretrained(model, tmp_path / "out", format="sdar")
    _, model = drafter(Lora(2, 1.0))
    with pytest.raises(InputError, match="not merged"):
        save_pretrained(model, tmp_path / "out")
