"""GGUF files in: exact for every family and type, sharded, strict; what is exported is a Hugging Face directory."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

gguf = pytest.importorskip("gguf")

from edlm_jax import InputError, load_pretrained, save_pretrained  # noqa: E402
from edlm_jax.models.spec import ModelSpec  # noqa: E402
from edlm_jax.parallel.sharding import MESH_AXES, named_sharding  # noqa: E402
from edlm_jax.pretrained import load_spec, load_tokenizer  # noqa: E402
from edlm_jax.pretrained.gguf.checkpoint import QUANTISED  # noqa: E402
from edlm_jax.pretrained.gguf.config import KNOWN  # noqa: E402
from edlm_jax.pretrained.layout import places  # noqa: E402
from tests.pretrained.gguf_files import ARCHITECTURES, Type, load_tensors, write_gguf  # noqa: E402
from tests.seeds import fresh_rng  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))
CASES = [case for case in CASES if ARCHITECTURES.get((spec := load_spec(GOLDEN / case)).family, spec.family) in KNOWN]
CASES.remove("mistral_window")  # a file says nothing of Mistral's windows


def params(model) -> dict:
    return {".".join(path): np.asarray(value[...]) for path, value in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def golden(case: str, path: Path, kind: Type = Type.F32, **how) -> Path:
    return write_gguf(path / f"{case}.gguf", load_spec(GOLDEN / case), load_tensors(GOLDEN / case), kind, **how)


@pytest.mark.parametrize("case", CASES)
def test_a_file_is_the_model_that_it_was_made_from(case, tmp_path):
    found, wanted = load_pretrained(golden(case, tmp_path), "float32"), load_pretrained(GOLDEN / case, "float32")
    same = dict(hf_json=wanted.spec.hf_json, source=wanted.spec.source, family=wanted.spec.family)
    assert dataclasses.replace(found.spec, **same) == wanted.spec
    assert found.spec.family == ARCHITECTURES.get(wanted.spec.family, wanted.spec.family)
    assert params(found).keys() == params(wanted).keys()
    for name, value in params(wanted).items():
        np.testing.assert_array_equal(params(found)[name], value, err_msg=name)


@pytest.mark.parametrize("case", ["llama3", "qwen3"])
def test_logits_are_those_of_transformers(case, tmp_path):
    expected, model = np.load(GOLDEN / case / "expected.npz"), load_pretrained(golden(case, tmp_path), "float32")
    forward = nnx.jit(lambda model, tokens_BT, positions_BT: model(tokens_BT, positions_BT=positions_BT))
    logits_BTV = forward(model, jnp.asarray(expected["tokens"]), jnp.asarray(expected["positions"]))
    np.testing.assert_allclose(logits_BTV[:, expected["columns"]], expected["logits"], atol=2e-4, rtol=0)


WIDE = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 512,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}


def wide(path: Path, kind: Type, change=lambda tensors: None) -> tuple[Path, dict]:
    """(a file of random matrices, the data and type of each of its tensors)."""
    spec, rng, stored = ModelSpec.from_hf(WIDE), fresh_rng(), {}
    shapes = {name: place.hf_shape for place in places(spec) for name in place.hf_names}
    tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}

    def fill(found):  # the package quantises to no _K: bytes at random, without infinite scales
        if kind.name.endswith("_K"):
            for name, (data, _) in found.items():
                if data.ndim > 1:
                    size = gguf.quant_shape_to_byte_shape(data.shape, kind)
                    found[name] = (rng.integers(0, 256, size, np.uint8) & np.uint8(0xBF), kind)
        change(found)
        stored.update(found)

    write_kind = Type.F32 if kind.name.endswith("_K") else kind
    return write_gguf(path / "wide.gguf", spec, tensors, write_kind, change=fill), stored


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", *QUANTISED])
def test_every_type_is_what_the_package_dequantises(name, tmp_path):
    path, stored = wide(tmp_path, Type[name])
    found = params(load_pretrained(path, "float32"))
    assert name == "F32" or sum(kind == Type[name] for _, kind in stored.values()) == 1 + 2 * 7
    for layer in range(2):
        for ours, theirs, heads in (("q_DNH", "attn_q", 4), ("k_DKH", "attn_k", 2), ("v_DKH", "attn_v", 2)):
            matrix = gguf.dequantize(*stored[f"blk.{layer}.{theirs}.weight"])
            for head in range(heads):
                rows = matrix[head * 64 : head * 64 + 64]
                if theirs != "attn_v":
                    rows = np.concatenate([rows[0::2], rows[1::2]])
                np.testing.assert_array_equal(found[f"layers.{ours}"][layer, :, head], rows.T, err_msg=f"{ours} {head}")
        down = gguf.dequantize(*stored[f"blk.{layer}.ffn_down.weight"])
        np.testing.assert_array_equal(found["layers.down_FD"][layer], down.T)
    np.testing.assert_array_equal(found["embedding_VD"], gguf.dequantize(*stored["token_embd.weight"]))
    assert np.isfinite(found["embedding_VD"]).all()


def test_vectors_may_be_narrow_too(tmp_path):
    def narrow(tensors):
        for name, (data, _) in list(tensors.items()):
            if data.ndim == 1:
                tensors[name] = (gguf.quantize(data, Type.BF16), Type.BF16)

    path, stored = wide(tmp_path, Type.Q8_0, narrow)
    found = params(load_pretrained(path, "float32"))
    np.testing.assert_array_equal(found["final_norm_D"], gguf.dequantize(*stored["output_norm.weight"]))


def test_a_mesh_gets_the_same_numbers(tmp_path):
    mesh = jax.make_mesh((1, 2, 2, 1), MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * 4)
    path, _ = wide(tmp_path, Type.Q4_K)
    alone, model = params(load_pretrained(path, "float32")), load_pretrained(path, "float32", mesh)
    for place in places(model.spec):
        array = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))[place.path][...]
        assert array.sharding == named_sharding(mesh, place.path[-1], array.shape)
        np.testing.assert_array_equal(array, alone[".".join(place.path)], err_msg=place.path[-1])


def test_an_export_is_a_hugging_face_directory(tmp_path):
    path = golden("llama_bias", tmp_path, Type.F16)
    model = load_pretrained(path, "float32")
    save_pretrained(model, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["dtype"] == "float32"
    again = load_pretrained(tmp_path / "out", "float32")
    for name, value in params(model).items():
        np.testing.assert_array_equal(params(again)[name], value, err_msg=name)


Q = "blk.1.attn_q.weight"


@pytest.mark.parametrize(
    ("change", "metadata", "named"),
    [
        (lambda t: t.pop(Q), {}, f"tensor {Q} is missing"),
        (lambda t: t.update({"blk.2.ffn_up.weight": t[Q]}), {}, "unknown tensor blk.2.ffn_up.weight"),
        (lambda t: t.update({"blk.0.attn_q.bias": (t[Q][0][0], Type.F32)}), {}, "unknown tensor blk.0.attn_q.bias"),
        (lambda t: t.update({Q: (t[Q][0].T.copy(), Type.F32)}), {}, rf"{Q} has shape \(32, 64\), .* \(64, 32\)"),
        (lambda t: t.update({Q: (t[Q][0].astype(np.int8), Type.I8)}), {}, f"{Q} has dtype I8; supported are F32"),
        (lambda t: t.update({Q: (t[Q][0].astype(np.float64), Type.F64)}), {}, f"{Q} has dtype F64"),
        (lambda t: t.pop("token_embd.weight"), {}, "tensor token_embd.weight is missing"),
        (None, {"general.architecture": "mamba"}, "architecture 'mamba' is not supported; supported are llama, qwen2"),
        (None, {"qwen3.attention.sliding_window": 64}, "qwen3.attention.sliding_window = 64 is not supported"),
        (None, {"qwen3.attention.head_count": [4, 2]}, r"head_count must be one positive whole number, not \[4, 2\]"),
        (None, {"qwen3.rope.dimension_count": 8}, r"rotated parts of \[16, 16, 8\] numbers"),
        (None, {"qwen3.rope.scaling.type": "longrope", "qwen3.rope.scaling.factor": 2.0}, "type 'longrope' is not"),
        (None, {"qwen3.block_count": None}, "has no qwen3.block_count"),
        (None, {"split.count": 3}, "is one of 3 parts"),
        (None, {"tokenizer.ggml.model": "bert"}, "tokenizer 'bert' is not supported; supported are gpt2, llama"),
    ],
)
def test_what_is_not_known_is_named(tmp_path, change, metadata, named):
    with pytest.raises(InputError, match=named) as error:
        load_pretrained(golden("qwen3", tmp_path, metadata=metadata, change=change or (lambda tensors: None)))
    assert "\n" not in str(error.value) and "qwen3.gguf" in str(error.value)


@pytest.mark.parametrize("kept", [0, 3, 30, 300, 0.3, 0.7, -32])
def test_a_truncated_file_is_named(tmp_path, kept):
    path = golden("llama3", tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(InputError, match="llama3.gguf is truncated or not a GGUF file") as error:
        load_pretrained(path)
    assert "\n" not in str(error.value)


def test_factors_of_another_rope_are_refused(tmp_path):
    def other(tensors):
        tensors["rope_freqs.weight"] = (np.float32([1, 2, 1, 4]), Type.F32)

    with pytest.raises(InputError, match="rope_freqs.weight are not those of a Llama 3"):
        load_pretrained(golden("llama3", tmp_path, change=other))


def test_a_directory_that_holds_only_a_file_says_what_to_give(tmp_path):
    path = golden("qwen3", tmp_path)
    for read in (load_spec, load_tokenizer):
        with pytest.raises(InputError, match=f"give the file itself, {path}"):
            read(tmp_path)
    (tmp_path / "config.json").write_text((GOLDEN / "qwen3" / "config.json").read_text())
    with pytest.raises(InputError, match=f"give the file itself, {path}"):
        load_pretrained(tmp_path)
    with pytest.raises(InputError, match="nowhere.gguf does not exist"):
        load_pretrained(tmp_path / "nowhere.gguf")


def test_a_file_that_changes_is_read_again(tmp_path):
    before = load_spec(golden("qwen3", tmp_path))
    after = load_spec(golden("qwen3", tmp_path, metadata={"qwen3.context_length": 64}))
    assert before.max_length == 4096 and after.max_length == 64


def test_without_the_package_it_says_what_to_install(tmp_path):
    path = golden("qwen3", tmp_path)
    hide = "import sys; sys.modules['gguf'] = None; import edlm_jax; edlm_jax.load_pretrained(sys.argv[1])"
    ended = subprocess.run([sys.executable, "-c", hide, path], capture_output=True, text=True)
    assert "needs the gguf package: pip install" in ended.stderr.splitlines()[-1]
