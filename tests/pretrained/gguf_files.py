"""GGUF files of Hugging Face tensors, made by the gguf package's own writer as llama.cpp's converter makes them."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import load_file

from edlm_jax.models.rope import Rope, inverse_frequencies
from edlm_jax.models.spec import ModelSpec

ARCHITECTURES = {"mistral": "llama"}


def load_tensors(directory: Path) -> dict[str, np.ndarray]:
    """Of a directory, as float32."""
    files = [load_file(path) for path in sorted(directory.glob("*.safetensors"))]
    return {name: tensor.astype(np.float32) for file in files for name, tensor in file.items()}


def write_gguf(
    path: Path,
    spec: ModelSpec,
    tensors: dict[str, np.ndarray],
    kind: Type = Type.F32,
    metadata: dict[str, Any] | None = None,
    change=lambda tensors: None,
) -> Path:
    """Writes the tensors, matrices as `kind`; `metadata` replaces entries, or takes them out (None)."""
    architecture = ARCHITECTURES.get(spec.family, spec.family)
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (describe(spec, architecture) | (metadata or {})).items():
        if value is not None:
            add(writer, key, value)
    found = {gguf_name(spec, name): (name, tensor) for name, tensor in tensors.items()}
    found = {ours: as_stored(spec, name, tensor, kind) for ours, (name, tensor) in found.items()}
    if (rope := spec.kind(0).rope).kind == "llama3":
        found["rope_freqs.weight"] = (llama3_factors(rope, spec.head_dim), Type.F32)
    change(found)
    for name, (data, its) in found.items():
        writer.add_tensor(name, data, raw_dtype=its)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_name(spec: ModelSpec, name: str) -> str:
    """llama.cpp's name of a tensor."""
    family = ARCHITECTURES.get(spec.family, spec.family)
    arch = next(arch for arch, known in gguf.MODEL_ARCH_NAMES.items() if known == family)
    return gguf.get_tensor_name_map(arch, spec.num_layers).get_name(name, try_suffixes=(".weight", ".bias"))


def as_stored(spec: ModelSpec, name: str, tensor: np.ndarray, kind: Type) -> tuple[np.ndarray, Type]:
    """(data, type): vectors stay float32, queries and keys of llama are turned."""
    heads = {"q_proj": spec.num_heads, "k_proj": spec.num_kv_heads}.get(name.split(".")[-2])
    if heads and spec.family in ("llama", "mistral"):  # convert_hf_to_gguf.py's LlamaModel.permute
        halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        tensor = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(tensor.shape))
    kind = kind if tensor.ndim > 1 else Type.F32
    return gguf.quantize(tensor, kind), kind


def llama3_factors(rope: Rope, head_dim: int) -> np.ndarray:
    """By what the frequencies are divided."""
    plain, _ = inverse_frequencies(Rope(rope.theta), head_dim)
    scaled, _ = inverse_frequencies(rope, head_dim)
    return plain / scaled


def describe(spec: ModelSpec, name: str) -> dict[str, Any]:
    """The model's metadata."""
    rope = spec.kind(0).rope
    found = {
        "block_count": spec.num_layers,
        "context_length": spec.max_length,
        "embedding_length": spec.width,
        "feed_forward_length": spec.ffn_width,
        "attention.head_count": spec.num_heads,
        "attention.head_count_kv": spec.num_kv_heads,
        "attention.key_length": spec.head_dim,
        "attention.value_length": spec.head_dim,
        "attention.layer_norm_rms_epsilon": spec.norm_eps,
        "rope.freq_base": rope.theta,
        "rope.dimension_count": spec.head_dim,
        "vocab_size": spec.vocab_size,
    }
    if rope.kind in ("linear", "yarn"):
        found |= {"rope.scaling.type": rope.kind, "rope.scaling.factor": rope.factor}
    if rope.kind == "yarn":
        found["rope.scaling.original_context_length"] = rope.original_length
    return {f"{name}.{key}": value for key, value in found.items()}


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """An entry of the metadata, by what it is in Python."""
    how = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    how.get(type(value), writer.add_array)(key, value)
