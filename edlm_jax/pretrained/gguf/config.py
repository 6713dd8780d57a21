"""The config.json of the model that a GGUF file was made from. What it asks for and we do not know is refused by name.

llama.cpp calls Mistral's models llama, too: as a Hugging Face model they are that here.
"""

import math
from typing import Any

import numpy as np

from edlm_jax.errors import InputError
from edlm_jax.models.families import FAMILIES
from edlm_jax.models.rope import Rope, inverse_frequencies
from edlm_jax.pretrained.gguf.file import GgufFile

KNOWN = ("llama", "qwen2", "qwen3")  # architectures by llama.cpp's names, which are the families' own
ROTATED = ("llama",)  # whose rows of queries and keys the converter reorders
FREQUENCIES = "rope_freqs.weight"  # of llama3 RoPE: by what each pair's frequency is divided

_SIZES = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "context_length": "max_position_embeddings",
}
_HEAD_DIMS = ("attention.key_length", "attention.value_length", "rope.dimension_count")
_READ = (
    *(*_SIZES, *_HEAD_DIMS, "attention.head_count_kv", "attention.layer_norm_rms_epsilon", "rope.freq_base"),
    *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"),
    *("vocab_size", "rope.scaling.finetuned"),  # the embedding's rows are the truth; says nothing of the computation
)


def check_architecture(file: GgufFile) -> str:
    """llama.cpp's name of a supported architecture."""
    name = file["general.architecture"]
    if name not in KNOWN:
        raise InputError(f"{file.path}: architecture {name!r} is not supported; supported are {', '.join(KNOWN)}")
    known = {f"{name}.{key}" for key in _READ}
    for key, value in file.metadata.items():
        if key.startswith(f"{name}.") and key not in known and value:  # false and 0 ask for nothing
            raise InputError(f"{file.path}: {key} = {str(value)[:40]} is not supported")
    return name


def head_dim(file: GgufFile) -> int:
    """The size of a head, all of which rotates."""
    name = check_architecture(file)
    sizes = [file.metadata[key] for part in _HEAD_DIMS if (key := f"{name}.{part}") in file.metadata]
    if not sizes:
        sizes = [file[f"{name}.embedding_length"] // _whole(file, f"{name}.attention.head_count")]
    if len(set(sizes)) > 1:
        raise InputError(f"{file.path}: keys, values and rotated parts of {sizes} numbers a head are not supported")
    return sizes[0]


def hf_config(file: GgufFile) -> dict[str, Any]:
    """The family's config.json; biases and tied heads as the tensors are there."""
    name = check_architecture(file)
    if "token_embd.weight" not in file.tensors:
        raise InputError(f"{file.path}: tensor token_embd.weight is missing")
    sizes = {hf_name: _whole(file, f"{name}.{key}") for key, hf_name in _SIZES.items()}
    grouped = f"{name}.attention.head_count_kv" in file.metadata
    config = {
        "architectures": [FAMILIES[name].architecture],
        "model_type": name,
        "vocab_size": int(file.tensors["token_embd.weight"].shape[-1]),
        **sizes,
        "num_key_value_heads": _whole(file, f"{name}.attention.head_count{'_kv' if grouped else ''}"),
        "head_dim": head_dim(file),
        "hidden_act": "silu",
        "rms_norm_eps": _number(file[f"{name}.attention.layer_norm_rms_epsilon"]),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": _rope(file, name).to_hf(),
        "dtype": "float32",  # what it is dequantised to
    }
    biases = {"attention_bias": "blk.0.attn_output.bias", "mlp_bias": "blk.0.ffn_gate.bias"}
    config |= {flag: biases[flag] in file.tensors for flag in FAMILIES[name].bias_flags}
    return config | _special_ids(file)


def _special_ids(file: GgufFile) -> dict[str, Any]:
    of = lambda name: file.metadata.get(f"tokenizer.ggml.{name}_token_id")  # noqa: E731
    ends = list(dict.fromkeys(of(name) for name in ("eos", "eot", "eom") if of(name) is not None))
    end = ends if len(ends) > 1 else next(iter(ends), None)
    found = dict(bos_token_id=of("bos"), eos_token_id=end, pad_token_id=of("padding"))
    return {name: value for name, value in found.items() if value is not None}


def _rope(file: GgufFile, name: str) -> Rope:
    """Linear and yarn are said in the metadata, llama3 by its factors alone."""
    read = lambda key, default=None: file.metadata.get(f"{name}.rope.{key}", default)  # noqa: E731
    theta, kind = _number(read("freq_base", 10_000.0)), read("scaling.type", "none")
    if FREQUENCIES in file.tensors:
        return _llama3(file, theta)
    if kind not in ("none", "linear", "yarn"):
        raise InputError(f"{file.path}: {name}.rope.scaling.type {kind!r} is not supported")
    parameters = {"rope_theta": theta}
    if kind != "none":
        parameters |= {"rope_type": kind, "factor": _number(file[f"{name}.rope.scaling.factor"])}
    if kind == "yarn":
        parameters["original_max_position_embeddings"] = file[f"{name}.rope.scaling.original_context_length"]
    config = {"rope_parameters": parameters, "max_position_embeddings": file[f"{name}.context_length"]}
    return Rope.from_hf(config, head_dim(file))


def _llama3(file: GgufFile, theta: float, low: float = 1.0, high: float = 4.0) -> Rope:
    """The parameters whose factors are those of the file; `low` and `high` are the same in all of Llama 3."""
    factors = np.asarray(file.tensors[FREQUENCIES].data, np.float32)
    size, largest = head_dim(file), float(factors.max())
    plain, _ = inverse_frequencies(Rope(theta), size)
    between = (factors > 1.001) & (factors < largest * 0.999) if factors.shape == plain.shape else np.zeros(0, bool)
    length = 8192
    if between.any():  # the interpolated pairs tell where the old context ended
        smooth = (1 / factors[between] - 1 / largest) / (1 - 1 / largest)
        length = round(float(np.mean(2 * math.pi / plain[between] * (smooth * (high - low) + low))))
    rope = Rope(theta, "llama3", largest, length, low, high)
    scaled, _ = inverse_frequencies(rope, size)
    if factors.shape != plain.shape or not np.allclose(plain / factors, scaled, rtol=1e-4, atol=0):
        raise InputError(f"{file.path}: the factors in {FREQUENCIES} are not those of a Llama 3, and not supported")
    return rope


def _whole(file: GgufFile, key: str) -> int:
    value = file[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{file.path}: {key} must be one positive whole number, not {str(value)[:40]}")
    return value


def _number(value: float) -> float:
    """What was written before it became a float32: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value)))
