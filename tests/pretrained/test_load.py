"""Import: exact for every family, sharded without reading more than needed, and strict."""

import collections
import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import edlm_jax
from edlm_jax import InputError, load_pretrained, save_pretrained
from edlm_jax.models.spec import ModelSpec
from edlm_jax.parallel.sharding import MESH_AXES, named_sharding
from edlm_jax.pretrained import checkpoint as checkpoint_module
from edlm_jax.pretrained import load_spec, source
from edlm_jax.pretrained.layout import places
from tests.seeds import fresh_rng

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))
META = {"format": "pt"}


@pytest.fixture
def qwen3(tmp_path) -> Path:
    """A directory of one safetensors file to damage."""
    return Path(shutil.copytree(GOLDEN / "qwen3", tmp_path / "qwen3"))


@pytest.fixture
def shards(tmp_path) -> Path:
    """A directory of two safetensors files and an index to damage."""
    return Path(shutil.copytree(GOLDEN / "qwen2_untied", tmp_path / "qwen2"))


def rewrite(directory: Path, change, file_name: str = "model.safetensors") -> None:
    tensors = load_file(directory / file_name)
    change(tensors)
    save_file(tensors, directory / file_name, META)


def edit_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def params(model) -> dict:
    return {".".join(path): np.asarray(value[...]) for path, value in nnx.to_flat_state(nnx.state(model, nnx.Param))}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case):
    expected = np.load(GOLDEN / case / "expected.npz")
    model = load_pretrained(GOLDEN / case, "float32")
    forward = nnx.jit(lambda model, tokens_BT, positions_BT: model(tokens_BT, positions_BT=positions_BT))
    logits_BTV = forward(model, jnp.asarray(expected["tokens"]), jnp.asarray(expected["positions"]))
    assert logits_BTV.dtype == jnp.float32
    np.testing.assert_allclose(logits_BTV[:, expected["columns"]], expected["logits"], atol=2e-4, rtol=0)


def test_every_parameter_is_a_tensor_of_the_file_and_none_is_left():
    for case in CASES:
        model = load_pretrained(GOLDEN / case, "float32")
        files = [load_file(path) for path in GOLDEN.glob(f"{case}/*.safetensors")]
        count = sum(tensor.size for file in files for tensor in file.values())
        assert sum(value.size for value in params(model).values()) == count


def test_dtypes_of_computation_and_storage():
    both = load_pretrained(GOLDEN / "llama_linear")
    assert both.dtype == "bfloat16" and {v.dtype for v in params(both).values()} == {np.dtype(ml_dtypes.bfloat16)}
    master = load_pretrained(GOLDEN / "llama_linear", "bfloat16", param_dtype="float32")
    assert master.dtype == "bfloat16" and {v.dtype for v in params(master).values()} == {np.dtype(np.float32)}
    stored = load_file(GOLDEN / "llama_linear" / "model.safetensors")["model.norm.weight"]
    assert stored.dtype == np.float16
    np.testing.assert_array_equal(params(master)["final_norm_D"], stored.astype(np.float32))
    with pytest.raises(InputError, match="'float8'"):
        load_pretrained(GOLDEN / "llama_linear", "float8")


def test_a_mesh_gets_the_same_numbers_and_each_device_reads_its_shard_alone(monkeypatch):
    read = []
    get = checkpoint_module.Checkpoint.__getitem__

    class Slice:
        def __init__(self, name, tensor):
            self.name, self.tensor = name, tensor
            self.get_shape, self.get_dtype = tensor.get_shape, tensor.get_dtype

        def __getitem__(self, index):
            part = self.tensor[index]
            read.append((self.name, part.size / np.prod(self.get_shape())))
            return part

    monkeypatch.setattr(checkpoint_module.Checkpoint, "__getitem__", lambda self, name: Slice(name, get(self, name)))
    mesh = jax.make_mesh((1, 2, 2, 1), MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * 4)
    for case in ("qwen3", "llama_bias"):
        read.clear()
        model = load_pretrained(GOLDEN / case, "float32", mesh)
        largest, total = dict(read), collections.Counter()
        for name, share in read:
            total[name] += share
        for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"):
            assert largest[f"model.layers.1.{name}.weight"] == 0.25
        assert set(total.values()) == {1.0}  # what several devices hold alike is read once
        for place in places(model.spec):
            array = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))[place.path][...]
            assert array.sharding == named_sharding(mesh, place.path[-1], array.shape)
        for name, value in params(load_pretrained(GOLDEN / case, "float32")).items():
            np.testing.assert_array_equal(params(model)[name], value, err_msg=name)


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop(Q), f"tensor {Q} is missing"),
        (lambda t: t.update({"model.layers.2.mlp.up_proj.weight": t[Q]}), "unknown tensor model.layers.2.mlp.up_proj"),
        (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": t[Q][0]}), "unknown tensor .*q_proj.bias"),
        (lambda t: t.update({Q: np.ascontiguousarray(t[Q].T)}), rf"tensor {Q} has shape \(32, 64\), .* \(64, 32\)"),
        (lambda t: t.update({Q: t[Q].astype(np.int8)}), f"tensor {Q} has dtype I8"),
        (lambda t: t.update({Q: t[Q].astype(np.float64)}), f"tensor {Q} has dtype F64"),
    ],
    ids=["missing", "unknown layer", "unknown bias", "shape", "int8", "float64"],
)
def test_a_wrong_tensor_is_named(qwen3, change, named):
    rewrite(qwen3, change)
    with pytest.raises(InputError, match=named) as error:
        load_pretrained(qwen3)
    assert "\n" not in str(error.value)


def test_a_tied_head_is_dropped_only_when_it_is_the_embedding(qwen3):
    before = params(load_pretrained(qwen3))
    rewrite(qwen3, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    after = params(load_pretrained(qwen3))
    assert before.keys() == after.keys() and "head_DV" not in after

    def differ(tensors):
        tensors["lm_head.weight"][-1, -1] += 1

    rewrite(qwen3, differ)
    with pytest.raises(InputError, match="lm_head.weight differs from model.embed_tokens.weight"):
        load_pretrained(qwen3)
    edit_json(qwen3 / "config.json", lambda config: config.update(tie_word_embeddings=False))
    assert "head_DV" in params(load_pretrained(qwen3))


@pytest.mark.parametrize("kept", [0, 5, 300, 0.5, -1])
def test_a_truncated_file_is_named(qwen3, kept):
    path = qwen3 / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(InputError, match="model.safetensors is truncated or not a safetensors file"):
        load_pretrained(qwen3)


def test_a_corrupt_header_is_named(qwen3):
    path = qwen3 / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[40] ^= 0x80
    path.write_bytes(data)
    with pytest.raises(InputError, match="model.safetensors is truncated or not a safetensors file"):
        load_pretrained(qwen3)


def test_a_tensor_in_two_shards_is_named(shards):
    first, second = sorted(shards.glob("*.safetensors"))
    name, tensor = next(iter(load_file(first).items()))
    rewrite(shards, lambda tensors: tensors.update({name: tensor}), second.name)
    with pytest.raises(InputError, match=f"tensor {name} is there twice.*{second.name}"):
        load_pretrained(shards)


def test_index_and_files_must_agree(shards):
    first, second = sorted(path.name for path in shards.glob("*.safetensors"))
    name = next(iter(load_file(shards / second)))
    index = shards / "model.safetensors.index.json"
    good = index.read_text()
    edit_json(index, lambda content: content["weight_map"].pop(name))
    with pytest.raises(InputError, match=f"tensor {name} is in {second}, but .* does not say so"):
        load_pretrained(shards)
    index.write_text(good)
    edit_json(index, lambda content: content["weight_map"].update({"model.extra": first}))
    with pytest.raises(InputError, match=f"tensor model.extra is not in {first}"):
        load_pretrained(shards)
    index.write_text(good)
    (shards / second).unlink()
    with pytest.raises(InputError, match=f"points to {second}, which does not exist"):
        load_pretrained(shards)


@pytest.mark.parametrize("content", ["", "[]", '{"weight_map": [1]}', '{"weight_map": {"a": 3}}'])
def test_an_index_that_is_none_is_named(shards, content):
    (shards / "model.safetensors.index.json").write_text(content)
    with pytest.raises(InputError, match="model.safetensors.index.json is not an index|points to 3"):
        load_pretrained(shards)


def test_an_index_cannot_point_outside(shards):
    def outside(content):
        content["weight_map"] = dict.fromkeys(content["weight_map"], "../qwen3/model.safetensors")

    edit_json(shards / "model.safetensors.index.json", outside)
    with pytest.raises(InputError, match="not a safetensors file beside it"):
        load_pretrained(shards)


def test_one_file_and_an_index_of_others_is_refused(shards):
    shutil.copy(GOLDEN / "qwen3" / "model.safetensors", shards)
    with pytest.raises(InputError, match="holds both"):
        load_pretrained(shards)


def test_pickles_are_never_loaded(qwen3):
    weights = qwen3 / "model.safetensors"
    weights.rename(qwen3 / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickled weights .pytorch_model.bin., which are never loaded"):
        load_pretrained(qwen3)


def test_a_directory_that_is_no_model_is_refused(tmp_path, qwen3):
    with pytest.raises(InputError, match="no config.json"):
        load_pretrained(tmp_path)
    (qwen3 / "model.safetensors").unlink()
    with pytest.raises(InputError, match="neither model.safetensors nor"):
        load_pretrained(qwen3)
    described = json.loads((qwen3 / "config.json").read_text())
    (qwen3 / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json is not JSON"):
        load_pretrained(qwen3)
    (qwen3 / "config.json").write_text("[]")
    with pytest.raises(InputError, match="not a JSON object"):
        load_pretrained(qwen3)
    (qwen3 / "config.json").write_text(json.dumps(described | {"rope_parameters": [1]}))
    with pytest.raises(InputError, match="config.json does not describe a model: 'list' object has no attribute"):
        load_pretrained(qwen3)


@pytest.mark.parametrize("path", ["/nowhere/at/all", "nowhere", "./a/b", "a/b/c", "../up"])
def test_what_is_neither_directory_nor_hub_id_is_refused_without_network(path, monkeypatch):
    monkeypatch.setattr(source, "_download", lambda repo: pytest.fail(f"asked the network for {repo}"))
    with pytest.raises(InputError, match="neither a directory nor a hub id"):
        load_pretrained(path)


def test_a_hub_id_downloads_what_is_needed_and_a_directory_nothing(monkeypatch):
    import huggingface_hub

    asked = {}

    def snapshot_download(repo, allow_patterns):
        asked[repo] = allow_patterns
        if repo == "no/such":
            raise huggingface_hub.errors.LocalEntryNotFoundError("not\nhere")
        return str(GOLDEN / "qwen3")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    load_pretrained(GOLDEN / "qwen3")
    assert not asked
    model = edlm_jax.load_pretrained("Qwen/Qwen3-tiny")
    assert model.spec.family == "qwen3" and model.spec.source == str(GOLDEN / "qwen3")
    assert not any(pattern in ("*", "*.bin", "*.safetensors") for pattern in asked["Qwen/Qwen3-tiny"])
    assert {"config.json", "model*.safetensors", "tokenizer.json"} <= set(asked["Qwen/Qwen3-tiny"])
    for name in ("adapter_config.json", "adapter_model.safetensors"):  # a drafter's, which lies beside its model
        assert any(fnmatch(f"adapter/{name}", pattern) for pattern in asked["Qwen/Qwen3-tiny"])
    with pytest.raises(InputError, match="no/such is not a directory here, and downloading it failed: not here"):
        load_pretrained("no/such")


def test_layout_inverts_itself_on_odd_sizes():
    config = json.loads((GOLDEN / "llama_bias" / "config.json").read_text())
    config |= dict(hidden_size=6, num_attention_heads=3, num_key_value_heads=1, head_dim=4, intermediate_size=5)
    rng = fresh_rng()
    for place in places(ModelSpec.from_hf(config)):
        tensor = rng.normal(size=place.hf_shape)
        whole = place.read(tensor, (slice(None),) * len(place.letters))
        layer_shape = place.shape[1:] if place.num_layers else place.shape
        assert whole.shape == layer_shape
        np.testing.assert_array_equal(place.write(whole), tensor)
        part = tuple(slice(size // 2, size) for size in layer_shape)
        np.testing.assert_array_equal(place.read(tensor, part), whole[part])


def test_rotary_frequencies_that_old_checkpoints_store_are_left_alone(qwen3, tmp_path):
    before = params(load_pretrained(qwen3))
    stored = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32) for layer in range(2)}
    rewrite(qwen3, lambda t: t.update(stored | {"model.rotary_emb.inv_freq": np.ones(8, np.float64)}))
    model = load_pretrained(qwen3)
    assert params(model).keys() == before.keys()
    save_pretrained(model, tmp_path / "out")
    assert not any("inv_freq" in name for name in load_file(tmp_path / "out" / "model.safetensors"))
    rewrite(qwen3, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freqs": np.ones(8, np.float32)}))
    with pytest.raises(InputError, match="unknown tensor model.layers.0.self_attn.rotary_emb.inv_freqs"):
        load_pretrained(qwen3)


def test_the_spec_of_a_hub_id_downloads_no_weights(monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot_download(repo, allow_patterns):
        asked.append(allow_patterns)
        return str(GOLDEN / "qwen3")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert load_spec("Qwen/Qwen3-without-weights").family == "qwen3"
    assert len(asked) == 1 and not any(name.endswith(("safetensors", "safetensors.index.json")) for name in asked[0])
    load_pretrained("Qwen/Qwen3-without-weights")
    load_pretrained("Qwen/Qwen3-without-weights")
    assert len(asked) == 2 and "model*.safetensors" in asked[1]  # one snapshot a process


def test_where_a_model_was_read_from_is_known_elsewhere(qwen3, tmp_path, monkeypatch):
    (qwen3 / "tokenizer.json").write_text("{}")
    monkeypatch.chdir(qwen3.parent)
    model = load_pretrained(qwen3.name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    save_pretrained(model, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").is_file()
