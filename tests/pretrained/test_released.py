"""Released layouts, in and out: checkpoints under exactly those names give the model that the family's names give."""

import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from edlm_jax import InputError, generate, load_pretrained, save_pretrained
from edlm_jax.models import Conversion, ModelSpec, Transformer
from edlm_jax.pretrained.formats import FORMATS
from edlm_jax.pretrained.released import RELEASED, translate
from tests.seeds import fresh_rng

GOLDEN = Path(__file__).parents[1] / "golden"
LLADA_LAYER = {
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
}
LLADA_TOP = {
    "model.embed_tokens.weight": "model.transformer.wte.weight",
    "model.norm.weight": "model.transformer.ln_f.weight",
    "lm_head.weight": "model.transformer.ff_out.weight",
}


def llada_name(name):
    if name in LLADA_TOP:
        return LLADA_TOP[name]
    layer, part = name.removeprefix("model.layers.").split(".", 1)
    return f"model.transformer.blocks.{layer}.{LLADA_LAYER[part.removesuffix('.weight')]}.weight"


def llada_config(config):
    sizes = dict(d_model="hidden_size", n_heads="num_attention_heads", n_kv_heads="num_key_value_heads")
    sizes |= dict(n_layers="num_hidden_layers", mlp_hidden_size="intermediate_size", embedding_size="vocab_size")
    sizes |= dict(max_sequence_length="max_position_embeddings", weight_tying="tie_word_embeddings")
    fixed = dict(architectures=["LLaDAModelLM"], model_type="llada", activation_type="silu", rope=True, mlp_ratio=4)
    fixed |= dict(rope_theta=config["rope_theta"], rms_norm_eps=config["rms_norm_eps"], block_type="llama")
    fixed |= dict(layer_norm_type="rms", include_bias=False, include_qkv_bias=False, mask_token_id=5)
    return fixed | {theirs: config[ours] for theirs, ours in sizes.items()}


def named(architecture, **fields):
    return lambda config: config | {"architectures": [architecture], "auto_map": {"AutoModel": "modeling.M"}} | fields


CASES = {
    "efficient_dlm": (
        "qwen3",
        named("EfficientDLM", model_type="qwen3", block_size=16, mask_token_id=7, dlm_type="llada"),
        lambda name: name.replace("model.", "encoder.", 1).replace("lm_head", "diffusion_head"),
        Conversion(7, 16, "clean_context", "same_position", "bidirectional", "response"),
    ),
    "efficient_dlm_named_as_qwen3": (
        "qwen3",
        named("EfficientDLM", model_type="qwen3", block_size=16, mask_token_id=7),
        str,
        Conversion(7, 16, "clean_context", "same_position", "bidirectional", "response"),
    ),
    "diff_encoder": (
        "qwen3",
        named("DiffEncoderModel", model_type="nvrdiff", block_size=16, mask_token_id=7, disable_qk_norm=False),
        lambda name: name.replace("model.", "encoder.", 1).replace("lm_head", "diffusion_head"),
        Conversion(7, 16, "clean_context", "same_position", "bidirectional", "response"),
    ),
    "a2d_qwen3": (
        "qwen3",
        named("A2DQwen3LMHeadModel", model_type="a2d-qwen3", mask_token_id=7),
        str,
        Conversion(7, 32, "clean_context", "same_position", "block_causal", "response"),
    ),
    "a2d_qwen2": (
        "qwen2",
        named("A2DQwen2LMHeadModel", model_type="a2d-qwen2", mask_token_id=7, block_size=8),
        str,
        Conversion(7, 8, "clean_context", "same_position", "block_causal", "response"),
    ),
    "a2d_llama": (
        "llama",
        named("A2DLlamaLMHeadModel", model_type="a2d-llama", mask_token_id=7),
        str,
        Conversion(7, 32, "clean_context", "same_position", "block_causal", "response"),
    ),
    "sdar": (
        "qwen3",
        named("SDARForCausalLM", model_type="sdar", mask_token_id=8, fuse_cross_entropy=True),
        str,
        Conversion(8, 4, "clean_context", "same_position", "block_causal", "position", "drawn"),
    ),
    "fast_dllm_v2": (
        "qwen2",
        named("Fast_dLLM_QwenForCausalLM", model_type="Fast_dLLM_Qwen", bd_size=8, mask_token_id=9),
        str,
        Conversion(9, 8, "clean_context", "shifted", "block_causal", "position", "drawn", "first_token"),
    ),
    "dream": (
        "qwen2",
        named("DreamModel", model_type="Dream", mask_token_id=6),
        str,
        Conversion(6, 32, "bidirectional", "shifted", "bidirectional", "position", "drawn"),
    ),
    "llada": (
        "llama",
        llada_config,
        llada_name,
        Conversion(5, 32, "bidirectional", "same_position", "bidirectional", "position"),
    ),
}


def small(family, vocab=61, tied=False):
    """A random model of the family."""
    config = dict(
        architectures=[{"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}[family]],
        model_type=family,
        vocab_size=vocab,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        intermediate_size=24,
        max_position_embeddings=64,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        tie_word_embeddings=tied,
        hidden_act="silu",
    )
    model = Transformer(ModelSpec.from_hf(config), rngs=nnx.Rngs(int(fresh_rng().integers(1000))))
    for leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)).leaves:
        leaf[...] = leaf[...] + 0.1 * fresh_rng().normal(size=leaf.shape)
    return model, config


def release(model, config, directory, rename, change):
    """The model's checkpoint under other names and with another config."""
    save_pretrained(model, directory / "family")
    tensors = {rename(name): value for name, value in load_file(directory / "family" / "model.safetensors").items()}
    (directory / "released").mkdir()
    save_file(tensors, directory / "released" / "model.safetensors", {"format": "pt"})
    (directory / "released" / "config.json").write_text(json.dumps(change(config)))
    return directory / "released"


def params(model):
    return {".".join(path): np.asarray(value[...]) for path, value in nnx.to_flat_state(nnx.state(model, nnx.Param))}


@pytest.mark.parametrize("case", CASES)
def test_released_checkpoints_are_read(case, tmp_path):
    family, change, rename, conversion = CASES[case]
    model, config = small(family)
    released = load_pretrained(release(model, config, tmp_path, rename, change), "float32")
    assert released.spec.conversion == conversion
    expected, got = params(model), params(released)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)
    plain = dataclasses.replace(released.spec, conversion=None, hf_json=model.spec.hf_json, source="")
    assert plain == model.spec
    save_pretrained(released, tmp_path / "ours")  # in the family's names, with the conversion
    assert load_pretrained(tmp_path / "ours", "float32").spec.conversion == conversion


@pytest.mark.parametrize(
    ("family", "architecture", "mask", "length"),
    [
        ("qwen3", "EfficientDLM", 151662, 32),
        ("qwen3", "SDARForCausalLM", 151669, 4),
        ("qwen3", "A2DQwen3LMHeadModel", 151669, 32),
        ("qwen2", "A2DQwen2LMHeadModel", 151665, 32),
        ("llama", "A2DLlamaLMHeadModel", 128256, 32),
    ],
)
def test_defaults_where_the_config_is_silent(family, architecture, mask, length):
    config = small(family)[1] | {"vocab_size": 151936, "architectures": [architecture], "model_type": "other"}
    conversion = ModelSpec.from_hf(translate(config)).conversion
    assert (conversion.mask_token_id, conversion.block_length) == (mask, length)


def test_what_releases_have_and_we_do_not_is_refused():
    with pytest.raises(InputError, match="block_type = 'sequential'"):
        translate(llada_config(small("llama")[1]) | {"block_type": "sequential"})
    with pytest.raises(InputError, match="disable_qk_norm = True"):
        translate(named("DiffEncoderModel", disable_qk_norm=True)(small("qwen3")[1]))
    for odd in (5, [["DreamModel"]], ["DreamModel", "DreamModel"]):  # is for the family to refuse
        assert translate({"architectures": odd}) == {"architectures": odd}


@pytest.mark.parametrize(
    ("name", "family", "alignment"), [("sdar", "qwen3", "same_position"), ("fast_dllm_v2", "qwen2", "shifted")]
)
@pytest.mark.parametrize("tied", [True, False])
def test_exported_formats_are_the_released_layouts(name, family, alignment, tied, tmp_path):
    model, _ = small(family, vocab=151936, tied=tied)
    conversion = Conversion(151662, 16, "clean_context", alignment, grid="position")
    model.spec = dataclasses.replace(model.spec, conversion=conversion)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_pretrained(model, tmp_path / "out", format=name)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    released_as = {"sdar": ("SDARForCausalLM", "sdar"), "fast_dllm_v2": ("Fast_dLLM_QwenForCausalLM", "Fast_dLLM_Qwen")}
    assert (config["architectures"], config["model_type"]) == ([released_as[name][0]], released_as[name][1])
    assert config["block_size" if name == "sdar" else "bd_size"] == 16 and config["rope_theta"] == 10000.0
    assert "edlm" not in config and "rope_parameters" not in config
    assert name != "sdar" or config["sliding_window"] is None  # absent, the released code takes 4096
    assert ("lm_head.weight" in names) == (name == "sdar" or not tied)
    back = load_pretrained(tmp_path / "out", "float32")
    mask = {"sdar": 151669, "fast_dllm_v2": 151665}[name]
    released = RELEASED[released_as[name][0]].conversion
    assert back.spec.conversion == dataclasses.replace(released, mask_token_id=mask, block_length=16)
    tokens = fresh_rng().integers(0, 151000, (1, 9))
    ours, theirs = tokens.copy(), tokens.copy()
    ours[0, 4:], theirs[0, 4:] = 151662, mask
    known = np.arange(151936) < 151643  # what text uses; the two masks' own columns may differ
    np.testing.assert_allclose(model(ours)[..., known], back(theirs)[..., known], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "family", "alignment"), [("sdar", "qwen3", "same_position"), ("fast_dllm_v2", "qwen2", "shifted")]
)
def test_exports_decode_as_before_on_the_grid_of_their_servers(name, family, alignment, tmp_path, monkeypatch):
    """Prompts of whole blocks do whatever the grid was; others only if blocks were counted from position 0 before."""
    seed, released = int(fresh_rng().integers(2**31)), RELEASED[FORMATS[name]]
    low_mask = dataclasses.replace(released, conversion=dataclasses.replace(released.conversion, mask_token_id=60))
    monkeypatch.setitem(RELEASED, FORMATS[name], low_mask)  # the real one needs a vocabulary of 151670
    rng, (model, _) = np.random.default_rng(seed), small(family)
    for matrix in ("q_DNH", "k_DKH", "v_DKH", "o_NHD", "gate_DF", "up_DF", "down_FD"):
        getattr(model.layers, matrix)[...] *= 10  # so that it matters who sees whom
    prompts = [rng.integers(0, 60, length).tolist() for length in (8, 16, 19, 3, 13)]
    how = dict(max_new_tokens=13, threshold=0.3, commit=released.conversion.commit)
    for grid in ("position", "response"):
        conversion = Conversion(60, 8, alignment=alignment, grid=grid)
        model.spec = dataclasses.replace(model.spec, conversion=conversion)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            save_pretrained(model, tmp_path / grid, format=name)
        texts = [str(warning.message) for warning in said]
        before, back = generate(model, prompts, **how), load_pretrained(tmp_path / grid, "float32")
        after = generate(back, prompts, **how)
        agree = [a == b for a, b in zip(before.tokens, after.tokens, strict=True)]
        if grid == "position":
            assert all(agree) and not texts, f"seed {seed}"
        else:
            assert agree[:2] == [True, True] and not all(agree), f"seed {seed}"
            assert len(texts) == 1 and "pad prompts on the left to whole blocks of 8, or train with" in texts[0]


def test_formats_refuse_what_their_servers_would_decode_wrongly(tmp_path):
    model, _ = small("qwen3")
    for change, reason in (
        (dict(conversion=None), "autoregressive"),
        (dict(conversion=Conversion(5, 4, alignment="shifted")), "needs alignment 'same_position'"),
        (dict(conversion=Conversion(5, 4, pattern="bidirectional")), "needs pattern"),
        (dict(conversion=Conversion(5, 4, noise="uniform_tokens")), "needs noise 'masks'"),
        (dict(conversion=Conversion(5, 4)), "vocabulary ends at 61"),
    ):
        model.spec = dataclasses.replace(model.spec, **change)
        with pytest.raises(InputError, match=reason):
            save_pretrained(model, tmp_path / "out", format="sdar")
        assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="sdar, fast_dllm_v2"):
        save_pretrained(model, tmp_path / "out", format="gguf")
    model, _ = small("qwen2")
    model.spec = dataclasses.replace(model.spec, conversion=Conversion(5, 4))
    with pytest.raises(InputError, match="needs family 'qwen3'"):
        save_pretrained(model, tmp_path / "out", format="sdar")
