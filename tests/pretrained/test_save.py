"""Export: the inverse of import, bitwise, and all of it or nothing."""

import dataclasses
import json
import shutil
import stat
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from edlm_jax import InputError, load_pretrained, save_pretrained
from edlm_jax.models.spec import Conversion, ModelSpec
from edlm_jax.parallel.sharding import MESH_AXES
from edlm_jax.pretrained import save as save_module

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))


def tensors(directory: Path) -> dict:
    """name -> (dtype, bytes) over all files."""
    files = [load_file(path) for path in directory.glob("*.safetensors")]
    return {name: (tensor.dtype, tensor.shape, tensor.tobytes()) for file in files for name, tensor in file.items()}


def config(directory: Path) -> dict:
    return json.loads((directory / "config.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_export_of_an_import_is_bitwise(case, tmp_path):
    stored = config(GOLDEN / case)["dtype"]
    save_pretrained(load_pretrained(GOLDEN / case, stored), tmp_path / "out")
    assert tensors(tmp_path / "out") == tensors(GOLDEN / case)
    assert config(tmp_path / "out") == config(GOLDEN / case)


@pytest.mark.parametrize("case", ["qwen3", "llama_linear"])
def test_export_casts_back_what_float32_holds_exactly(case, tmp_path):
    stored = config(GOLDEN / case)["dtype"]
    save_pretrained(load_pretrained(GOLDEN / case, "float32"), tmp_path / "out", dtype=stored)
    assert tensors(tmp_path / "out") == tensors(GOLDEN / case)
    assert config(tmp_path / "out")["dtype"] == stored


def test_config_says_the_dtype_and_the_conversion(tmp_path):
    source = Path(shutil.copytree(GOLDEN / "qwen3", tmp_path / "source"))
    (source / "config.json").write_text((source / "config_old.json").read_text())
    model = load_pretrained(source, "float32")
    conversion = Conversion(mask_token_id=66, block_length=8)
    model.spec = dataclasses.replace(model.spec, conversion=conversion)
    save_pretrained(model, tmp_path / "out")
    written = config(tmp_path / "out")
    assert written.pop("torch_dtype") == "float32" and "dtype" not in written
    assert written.pop("edlm") == dataclasses.asdict(conversion)
    original = config(source)
    original.pop("torch_dtype")
    assert written == original
    assert load_pretrained(tmp_path / "out").spec.conversion == conversion


def test_several_files_with_an_index(tmp_path):
    model = load_pretrained(GOLDEN / "llama_bias", "float32")
    save_pretrained(model, tmp_path / "out", shard_bytes=20_000)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    assert len(files) >= 4
    sizes = [sum(tensor.nbytes for tensor in load_file(tmp_path / "out" / name).values()) for name in files]
    assert max(sizes) <= 20_000
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes)
    save_pretrained(load_pretrained(tmp_path / "out", "float32"), tmp_path / "one")
    assert tensors(tmp_path / "one") == tensors(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["config.json", "model.safetensors"]


def test_a_sharded_model_exports_the_same_and_changes_are_kept(tmp_path):
    mesh = jax.make_mesh((1, 2, 2, 1), MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * 4)
    for name, placed in (("mesh", mesh), ("one", None)):
        model = load_pretrained(GOLDEN / "qwen2_untied", "bfloat16", placed)
        save_pretrained(model, tmp_path / name)
        assert tensors(tmp_path / name) == tensors(GOLDEN / "qwen2_untied")
        model.layers.k_DKH[...] = model.layers.k_DKH[...].at[1, 3, 1, 2].set(7)
        save_pretrained(model, tmp_path / f"{name}_changed")
        before, after = (load_file(tmp_path / d / "model.safetensors") for d in (name, f"{name}_changed"))
        changed = {tensor for tensor in before if not np.array_equal(before[tensor], after[tensor])}
        assert changed == {"model.layers.1.self_attn.k_proj.weight"}
        assert after["model.layers.1.self_attn.k_proj.weight"][1 * 8 + 2, 3] == 7


def test_tokenizer_files_come_along_and_other_files_do_not(tmp_path):
    source = Path(shutil.copytree(GOLDEN / "smollm2", tmp_path / "source"))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "notes.txt", "pytorch_model.bin"):
        (source / name).write_text(name)
    save_pretrained(load_pretrained(source, "float32"), tmp_path / "out")
    kept = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == kept
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "tokenizer.json"
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o644 for path in (tmp_path / "out").iterdir())
    model = load_pretrained(source)
    shutil.rmtree(source)
    with pytest.raises(InputError, match="source, whose tokenizer"):
        save_pretrained(model, tmp_path / "later")


def test_what_exists_is_not_overwritten(tmp_path):
    model = load_pretrained(GOLDEN / "smollm2", "float32")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        save_pretrained(model, tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["precious"]
    with pytest.raises(InputError, match="exists already"):
        save_pretrained(model, tmp_path / "full" / "precious")
    (tmp_path / "empty").mkdir()
    save_pretrained(model, tmp_path / "empty")
    save_pretrained(model, tmp_path / "new" / "below")
    assert tensors(tmp_path / "empty") == tensors(tmp_path / "new" / "below")


def test_a_link_to_an_empty_directory_is_followed_and_a_mount_point_refused(tmp_path, monkeypatch):
    model = load_pretrained(GOLDEN / "smollm2", "float32")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to("elsewhere")
    save_pretrained(model, tmp_path / "out")
    assert (tmp_path / "out").is_symlink() and tensors(tmp_path / "elsewhere")
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "volume")
    (tmp_path / "volume").mkdir()
    with pytest.raises(InputError, match="volume is a mount point"):
        save_pretrained(model, tmp_path / "volume")
    save_pretrained(model, tmp_path / "volume" / "below")


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    model = load_pretrained(GOLDEN / "smollm2", "float32")
    target = tmp_path / "out"
    seen = []

    def fail(model, dtype, draft):
        seen.extend(path.name for path in draft.iterdir())
        assert not target.exists()
        raise OSError("disk full")

    monkeypatch.setattr(save_module, "_write_config", fail)
    with pytest.raises(OSError, match="disk full"):
        save_pretrained(model, target)
    assert seen == ["model.safetensors"]
    assert list(tmp_path.iterdir()) == []


def test_a_model_made_from_nothing_exports_and_returns(tmp_path):
    spec = dataclasses.replace(load_pretrained(GOLDEN / "mistral").spec, hf_json="{}", source="", num_layers=3)
    model = type(load_pretrained(GOLDEN / "mistral"))(spec, rngs=nnx.Rngs(0))
    save_pretrained(model, tmp_path / "out")
    again = load_pretrained(tmp_path / "out", "float32")
    assert config(tmp_path / "out")["dtype"] == "float32"
    assert dataclasses.replace(again.spec, hf_json="{}", source="") == spec
    for (path, one), (_, other) in zip(
        nnx.to_flat_state(nnx.state(model)), nnx.to_flat_state(nnx.state(again)), strict=True
    ):
        np.testing.assert_array_equal(one[...], other[...], err_msg=str(path))


KEPT = ("tokenizer.json", "tokenizer.4.0.0.json", "tokenizer.model", "tokenizer.model.v3", "spiece.model", "vocab.txt")
KEPT += ("vocab.json", "merges.txt", "tekken.json", "qwen.tiktoken", "normalizer.json", "chat_template.jinja")
KEPT += ("special_tokens_map.json", "added_tokens.json", "additional_chat_templates/tool_use.jinja")
LEFT = ("tokenization_own.py", "README.md", "training_args.bin", "optimizer.pt", "onnx/model.onnx")


def test_whatever_a_tokenizer_is_made_of_goes_along(tmp_path):
    source = Path(shutil.copytree(GOLDEN / "smollm2", tmp_path / "source"))
    for name in (*KEPT, *LEFT):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(name)
    save_pretrained(load_pretrained(source, "float32"), tmp_path / "out")
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {"config.json", "model.safetensors", *KEPT}
    assert stat.S_IMODE((tmp_path / "out" / "additional_chat_templates").stat().st_mode) == 0o755


def test_an_export_names_no_code_that_it_does_not_hold(tmp_path):
    source = Path(shutil.copytree(GOLDEN / "qwen3", tmp_path / "source"))
    (source / "config.json").write_text(json.dumps(config(source) | {"auto_map": {"AutoModel": "modeling_own.Own"}}))
    auto = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    settings = dict(eos_token="é", tokenizer_class="OwnTokenizer", auto_map=auto)
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    save_pretrained(load_pretrained(source, "float32"), tmp_path / "out")
    assert "auto_map" not in config(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert written == {"eos_token": "é", "tokenizer_class": "PreTrainedTokenizerFast"}


def test_both_spellings_of_the_dtype_agree(tmp_path):
    source = Path(shutil.copytree(GOLDEN / "qwen3", tmp_path / "source"))
    (source / "config.json").write_text(json.dumps(config(source) | {"torch_dtype": "bfloat16", "dtype": "bfloat16"}))
    save_pretrained(load_pretrained(source, "float32"), tmp_path / "out")
    assert (config(tmp_path / "out")["torch_dtype"], config(tmp_path / "out")["dtype"]) == ("float32", "float32")


YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)


@pytest.mark.parametrize(
    "spelled",
    [
        dict(rope_theta=10_000.0, rope_parameters=dict(rope_type="default", rope_theta=5e5)),
        dict(rope_theta=5e5, rope_parameters=dict(rope_type="default")),
        dict(rope_theta=5e5, rope_scaling=YARN, rope_parameters=dict(rope_type="default", rope_theta=10_000.0)),
        dict(rope_theta=5e5, rope_scaling=None, rope_parameters=YARN),
    ],
)
def test_both_spellings_of_rope_agree(tmp_path, spelled):
    source = Path(shutil.copytree(GOLDEN / "qwen3", tmp_path / "source"))
    original = {name: value for name, value in config(source).items() if not name.startswith("rope_")}
    (source / "config.json").write_text(json.dumps(original | spelled))
    model = load_pretrained(source, "float32")
    save_pretrained(model, tmp_path / "out")
    written = config(tmp_path / "out")
    for form in (("rope_theta", "rope_scaling"), ("rope_parameters",)):
        alone = {name: value for name, value in written.items() if not name.startswith("rope_") or name in form}
        assert ModelSpec.from_hf(alone).kinds == model.spec.kinds, form
    assert load_pretrained(tmp_path / "out").spec.kinds == model.spec.kinds


def test_a_generation_config_knows_every_end_that_config_json_knows(tmp_path):
    source = Path(shutil.copytree(GOLDEN / "qwen3", tmp_path / "source"))
    out = tmp_path / "out"
    for number, (ends, generation, expected) in enumerate(
        [(5, 3, [3, 5]), ([5, 3], [3, 5], [3, 5]), (5, None, 5), (None, 3, 3), (3, [3, 5], [3, 5])]
    ):
        (source / "config.json").write_text(json.dumps(config(GOLDEN / "qwen3") | {"eos_token_id": ends}))
        found = {"temperature": 0.6} | ({} if generation is None else {"eos_token_id": generation})
        (source / "generation_config.json").write_text(json.dumps(found))
        save_pretrained(load_pretrained(source, "float32"), out / str(number))
        written = json.loads((out / str(number) / "generation_config.json").read_text())
        assert written == {"temperature": 0.6, "eos_token_id": expected}


def test_a_dtype_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(InputError, match="dtype 'float8' is not one of"):
        save_pretrained(load_pretrained(GOLDEN / "qwen3", "float32"), tmp_path / "out", dtype="float8")
