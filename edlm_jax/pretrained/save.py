"""A Transformer into a Hugging Face directory: config.json, safetensors, tokenizer; all of it or nothing."""

import json
import math
import os
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from safetensors.numpy import save_file

from edlm_jax.errors import InputError
from edlm_jax.models.spec import ModelSpec
from edlm_jax.models.transformer import Transformer
from edlm_jax.pretrained.adapter import adapter_places, write_adapter
from edlm_jax.pretrained.checkpoint import INDEX, SINGLE
from edlm_jax.pretrained.formats import check_format, prepare
from edlm_jax.pretrained.layout import Place, places
from edlm_jax.pretrained.load import FLOATS
from edlm_jax.pretrained.tokenizer_files import copy_tokenizer

SHARD_BYTES = 5_000_000_000


def save_pretrained(
    model: Transformer,
    directory: str | Path,
    *,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    format: str | None = None,
) -> None:
    """Writes what `load_pretrained`, transformers and the servers read; bitwise what was loaded when dtypes agree.

    Adapters of noisy columns lie beside the model, which is as if there were none: see adapter.py.

    `dtype` casts on the way out (None: as the parameters are stored). `format` is a server's layout, by its name in
    formats.py, instead of the family's own. The directory must not exist yet, or be empty:
    the files are written beside it and renamed at the end. On several hosts every process calls this, the first writes.
    """
    lora = model.layers.lora
    if lora and not lora.gated:
        raise InputError("this model's adapters are not merged; read its run with load_trained, which merges them")
    if lora and format is not None:
        raise InputError(f"format {format!r} has no place for adapters of noisy columns; leave it out")
    check_export(model.spec, directory, dtype=dtype, format=format)
    target, config = Path(directory).expanduser().absolute(), model.spec.to_hf()
    if format is not None:
        model, config = prepare(model, format)
    params = {path: variable[...] for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    stored = np.dtype(dtype or params[("embedding_VD",)].dtype)
    plan = _plan(model, stored, shard_bytes)
    adapters = adapter_places(model.spec, lora) if lora else []
    beside = [(place, layer) for place in adapters for layer in range(place.num_layers)]
    if jax.process_index() == 0:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            _write_weights(plan, params, stored, draft)
            _write_config(config, stored, draft)
            if lora:
                wide = np.dtype(np.float32)
                arrays = {place.hf_names[layer]: _tensor(place, layer, params, wide) for place, layer in beside}
                write_adapter(model.spec, lora, arrays, draft)
            if model.spec.source:
                copy_tokenizer(model.spec.source, draft, config)
            for path in (draft, *draft.rglob("*")):
                path.chmod(0o755 if path.is_dir() else 0o644)  # mkdtemp and safetensors write for the owner alone
            os.rename(draft, target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    else:
        for place, layer in [*(tensor for file in plan for tensor in file), *beside]:
            _tensor(place, layer, params, stored)  # takes part in the gathering
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("save_pretrained")


def check_export(
    spec: ModelSpec, directory: str | Path, *, dtype: str | None = None, format: str | None = None
) -> None:
    """Refuses what `save_pretrained` cannot write of a model of this spec, before it is read."""
    target = Path(directory).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists already; remove it or choose another directory")
    if dtype is not None and dtype not in FLOATS:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(FLOATS)}")
    if spec.source and not Path(spec.source).is_dir():
        raise InputError(f"{spec.source}, whose tokenizer belongs to this model, is gone; put it back to export")
    if format is not None:
        check_format(spec, format)


def _write_config(config: dict, dtype: np.dtype, draft: Path) -> None:
    names = [name for name in ("torch_dtype", "dtype") if name in config] or ["dtype"]
    config.update(dict.fromkeys(names, dtype.name))
    (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_weights(plan: list[list[tuple[Place, int]]], params: dict, dtype: np.dtype, draft: Path) -> None:
    """One file, or several with an index; one file's tensors at a time are in host memory."""
    weight_map: dict[str, str] = {}
    total = 0
    for number, tensors in enumerate(plan, start=1):
        file_name = SINGLE if len(plan) == 1 else f"model-{number:05d}-of-{len(plan):05d}.safetensors"
        arrays = {place.hf_names[layer]: _tensor(place, layer, params, dtype) for place, layer in tensors}
        save_file(arrays, draft / file_name, {"format": "pt"})  # transformers refuses a file without the format
        weight_map |= dict.fromkeys(arrays, file_name)
        total += sum(array.nbytes for array in arrays.values())
    if len(plan) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (draft / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _plan(model: Transformer, dtype: np.dtype, shard_bytes: int) -> list[list[tuple[Place, int]]]:
    """The tensors (parameter, layer) of each file."""
    layout = places(model.spec)
    tensors = [(place, 0) for place in layout if not place.num_layers]
    tensors += [(place, layer) for layer in range(model.spec.num_layers) for place in layout if place.num_layers]
    files: list[list[tuple[Place, int]]] = [[]]
    used = 0
    for place, layer in tensors:
        size = math.prod(place.hf_shape) * dtype.itemsize
        if files[-1] and used + size > shard_bytes:
            files.append([])
            used = 0
        files[-1].append((place, layer))
        used += size
    return files


def _tensor(place: Place, layer: int, params: dict, dtype: np.dtype) -> np.ndarray:
    param = params[place.path]
    return place.write(_to_host(_layer(param, layer) if place.num_layers else param).astype(dtype))


@jax.jit
def _layer(param: jax.Array, layer: int) -> jax.Array:
    """One layer on the devices: `layer` is traced, so that a shape compiles once and not once per layer."""
    return jax.lax.dynamic_index_in_dim(param, layer, keepdims=False)


def _to_host(array: jax.Array) -> np.ndarray:
    if array.is_fully_addressable:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)
