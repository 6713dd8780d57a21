"""Writes the golden files beside this script: tiny random transformers models and their float32 logits.

    python tests/golden/make_golden.py [CASE ...]   (needs torch and transformers; the tests that read the files do not)

Each case is a directory: config.json as transformers 5 writes it, config_old.json in the form before it, the weights in
the case's dtype, and expected.npz with tokens, positions and the logits of some columns. rope.json has frequencies.
Weights are drawn much larger than a fresh model's, so that a wrong rotation, bias or norm moves the logits by far more
than the tests allow; they are rounded to the case's dtype first, so that the float32 logits belong to what is stored.
"""

import copy
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

HERE = Path(__file__).parent
LENGTH = 40
SPREAD = 4000  # positions of the scaled cases reach past 2048, where a forgotten scaling shows

_SHAPE = dict(
    vocab_size=67,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    max_position_embeddings=4096,
    tie_word_embeddings=False,
)
_LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
_LLAMA3 |= dict(original_max_position_embeddings=512)
_YARN = dict(rope_type="yarn", factor=8.0, original_max_position_embeddings=512)
_LINEAR = dict(rope_type="linear", factor=4.0)
_TWO_ROPES = dict(sliding_attention=dict(rope_type="default", rope_theta=1e4))
_TWO_ROPES |= dict(full_attention=dict(rope_theta=1e6) | _LINEAR)
_FIRST = dict(num_hidden_layers=3, layer_types=["full_attention", "sliding_attention", "sliding_attention"])
_IDS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
_GEMMA = dict(
    head_dim=16,
    num_hidden_layers=7,
    layer_types=(["sliding_attention"] * 2 + ["full_attention"]) * 2 + ["sliding_attention"],
    num_key_value_heads=1,
    query_pre_attn_scalar=9,
    sliding_window=6,
    tie_word_embeddings=True,
)

# name -> (model_type, changes to _SHAPE, RoPE parameters, stored dtype, bytes per file, end of the positions)
CASES = {
    "qwen2_untied": ("qwen2", {}, dict(rope_theta=1e6), "bfloat16", 30_000, LENGTH),
    "qwen2_tied": ("qwen2", dict(tie_word_embeddings=True), dict(rope_theta=1e6), "bfloat16", 10**9, LENGTH),
    "qwen2_yarn": ("qwen2", {}, dict(rope_theta=1e4) | _YARN, "bfloat16", 10**9, SPREAD),
    "qwen3": ("qwen3", dict(head_dim=16, tie_word_embeddings=True), dict(rope_theta=1e6), "bfloat16", 10**9, LENGTH),
    "llama3": ("llama", dict(head_dim=8), dict(rope_theta=5e5) | _LLAMA3, "bfloat16", 10**9, SPREAD),
    "llama_linear": ("llama", dict(head_dim=8), dict(rope_theta=1e4) | _LINEAR, "float16", 10**9, SPREAD),
    "llama_bias": ("llama", dict(attention_bias=True, mlp_bias=True), dict(rope_theta=1e4), "bfloat16", 10**9, LENGTH),
    "smollm2": ("llama", dict(tie_word_embeddings=True), dict(rope_theta=1e5), "float32", 10**9, LENGTH),
    "mistral": ("mistral", dict(head_dim=12, sliding_window=None), dict(rope_theta=1e6), "bfloat16", 10**9, LENGTH),
    "mistral_window": ("mistral", dict(head_dim=12, sliding_window=7), dict(rope_theta=1e6), "float32", 10**9, LENGTH),
    "gemma3": ("gemma3_text", _GEMMA, _TWO_ROPES, "bfloat16", 10**9, LENGTH),
    "smollm3": ("smollm3", dict(num_hidden_layers=5, **_IDS), dict(rope_theta=2e6), "bfloat16", 10**9, LENGTH),
    "gemma3_irregular": ("gemma3_text", _GEMMA | _FIRST, _TWO_ROPES, "float32", 10**9, LENGTH),
}

_YARN_MSCALE = dict(mscale=0.7, mscale_all_dim=1.3, beta_fast=24, beta_slow=2, truncate=False)
ROPES = [  # (head size, RoPE parameters), at real sizes
    (128, dict(rope_type="default", rope_theta=1e6)),
    (64, dict(rope_type="linear", rope_theta=1e4, factor=8.0)),
    (128, dict(rope_theta=5e5) | _LLAMA3 | dict(original_max_position_embeddings=8192)),
    (64, dict(rope_theta=5e5) | _LLAMA3 | dict(factor=32.0, original_max_position_embeddings=8192)),
    (128, dict(rope_theta=1e6) | _YARN | dict(factor=4.0, original_max_position_embeddings=32768)),
    (64, dict(rope_theta=1e4) | _YARN | dict(attention_factor=1.25)),
    (80, dict(rope_theta=1e4) | _YARN | _YARN_MSCALE),
]


def make_config(name: str):
    """The transformers config of a case."""
    family, changes, rope, *_ = CASES[name]
    return AutoConfig.for_model(family, **(_SHAPE | changes), rope_parameters=dict(rope))


def make_model(name: str, seed: int):
    """A random float32 model whose weights are exact in the case's dtype."""
    dtype = getattr(torch, CASES[name][3])
    model = AutoModelForCausalLM.from_config(make_config(name), attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            if "norm" in path:
                draw = (CASES[name][0] != "gemma3_text") + 0.3 * draw
            elif path.endswith("bias"):
                draw = 0.5 * draw
            elif "embed" not in path:
                draw = draw * (2.0 if "q_proj" in path or "k_proj" in path else 1.0) / parameter.shape[1] ** 0.5
            parameter.copy_(draw.to(dtype).float())
    return model


def logits(model, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """float32 logits of every column; the mask of ones keeps transformers from reading gaps as document ends."""
    ids, positions = torch.from_numpy(tokens), torch.from_numpy(positions)
    with torch.no_grad():
        return model(input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids)).logits.numpy()


def draw_inputs(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and rising positions [1, LENGTH], with gaps where the case reaches far."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, _SHAPE["vocab_size"], (1, LENGTH))
    return tokens, np.sort(rng.choice(CASES[name][-1], (1, LENGTH), replace=False))


def old_form(config: dict) -> dict:
    """The same config.json as transformers wrote it before version 5."""
    config = dict(config)
    rope = dict(config.pop("rope_parameters"))
    if "sliding_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = dict(rope["full_attention"])
        if config["layer_types"][2] == "full_attention":
            config.pop("layer_types")
            config["sliding_window_pattern"] = 3
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    if kind == "default":
        config["rope_scaling"] = None
    else:  # "type" is the oldest name, and what linear and yarn checkpoints have, but for Gemma's
        named = kind == "llama3" or config["model_type"] == "gemma3_text"
        config["rope_scaling"] = {"rope_type" if named else "type": kind} | rope
    config["torch_dtype"] = config.pop("dtype")
    return config


def save(model, name: str, directory: Path) -> None:
    """Writes the model in the case's dtype and number of files."""
    _, _, _, dtype, bytes_per_file, _ = CASES[name]
    rounded = copy.deepcopy(model).to(getattr(torch, dtype))  # .to() would spoil the model's own RoPE frequencies
    rounded.save_pretrained(directory, max_shard_size=bytes_per_file)
    (directory / "generation_config.json").unlink(missing_ok=True)
    for path in directory.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone


def frequencies(head_dim: int, rope: dict) -> tuple[list[float], float]:
    """What transformers computes, and the factor on cos and sin."""
    config = AutoConfig.for_model(
        "llama", **(_SHAPE | dict(head_dim=head_dim, max_position_embeddings=131072)), rope_parameters=dict(rope)
    )
    if rope["rope_type"] == "default":
        period = rope["rope_theta"] ** (torch.arange(0, head_dim, 2).float() / head_dim)
        return (1 / period).tolist(), 1.0
    values, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, device="cpu")
    return values.tolist(), float(factor)


def main(names: list[str]) -> None:
    for seed, name in enumerate(CASES):
        if names and name not in names:
            continue
        directory = HERE / name
        shutil.rmtree(directory, ignore_errors=True)
        model = make_model(name, seed)
        tokens, positions = draw_inputs(name, seed)
        expected = logits(model, tokens, positions)
        save(model, name, directory)
        config = old_form(json.loads((directory / "config.json").read_text()))
        (directory / "config_old.json").write_text(json.dumps(config, indent=2) + "\n")
        columns = np.arange(0, LENGTH, 3)
        inputs = dict(tokens=tokens.astype(np.int32), positions=positions.astype(np.int32))
        np.savez_compressed(directory / "expected.npz", **inputs, columns=columns, logits=expected[:, columns])
        print(f"{name:14} positions to {positions.max():4}, logits within +-{np.abs(expected).max():.1f}")
    ropes = []
    for head_dim, rope in ROPES:
        values, factor = frequencies(head_dim, rope)
        ropes.append(dict(head_dim=head_dim, rope_parameters=rope, frequencies=values, attention_factor=factor))
    (HERE / "rope.json").write_text(json.dumps(ropes) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
