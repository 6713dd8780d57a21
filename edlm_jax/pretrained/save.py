"""A Transformer into a Hugging Face directory: config.json, safetensors, tokenizer; all of it or nothing."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
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
from edlm_jax.pretrained.tokenizer import copy_tokenizer

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
    formats.py, instead of the family's own. The directory must not exist yet, or be empty: the files are written beside
    it and renamed at the end. On several hosts every process calls this, the first writes.
    """
    from huggingface_hub import split_state_dict_into_shards_factory  # slow to import

    lora = model.layers.lora
    if lora and not lora.gated:
        raise InputError("this model's adapters are not merged; read its run with load_trained, which merges them")
    if lora and format is not None:
        raise InputError(f"format {format!r} has no place for adapters of noisy columns; leave it out")
    check_export(model.spec, directory, dtype=dtype, format=format)
    target, config = _target(directory), model.spec.to_hf()
    if format is not None:
        model, config = prepare(model, format)
    params = {path: variable[...] for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    stored = np.dtype(dtype or params[("embedding_VD",)].dtype)
    tensors, adapters = _tensors(places(model.spec)), _tensors(adapter_places(model.spec, lora)) if lora else {}
    files = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: math.prod(tensor[0].hf_shape) * stored.itemsize,
        filename_pattern=SINGLE.replace(".", "{suffix}."),
        max_shard_size=shard_bytes,
    )
    if jax.process_index() == 0:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            _write_weights(files, lambda name: _tensor(*tensors[name], params, stored), draft)
            _write_config(config, stored, draft)
            if lora:
                arrays = {name: _tensor(*tensor, params, np.dtype("float32")) for name, tensor in adapters.items()}
                write_adapter(model.spec, lora, arrays, draft)
            if model.spec.source:
                copy_tokenizer(model.spec.source, draft, config)
            for path in (draft, *draft.rglob("*")):
                path.chmod(0o755 if path.is_dir() else 0o644)  # mkdtemp and safetensors write for the owner alone
            os.rename(draft, target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    else:
        written = [tensors[name] for names in files.filename_to_tensors.values() for name in names]
        for tensor in [*written, *adapters.values()]:
            _tensor(*tensor, params, stored)  # takes part in the gathering
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("save_pretrained")


def check_export(
    spec: ModelSpec, directory: str | Path, *, dtype: str | None = None, format: str | None = None
) -> None:
    """Refuses what `save_pretrained` cannot write of a model of this spec, before it is read."""
    target = _target(directory)
    if target.is_mount():
        raise InputError(f"{target} is a mount point, which no finished export can be renamed to; choose one below it")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists already; remove it or choose another directory")
    if dtype is not None and dtype not in FLOATS:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(FLOATS)}")
    if spec.source and not Path(spec.source).is_dir():
        raise InputError(f"{spec.source}, whose tokenizer belongs to this model, is gone; put it back to export")
    if format is not None:
        check_format(spec, format)


def _target(directory: str | Path) -> Path:
    """Where an export lies in the end: of a link what it leads to, for nothing can be renamed to a link."""
    return Path(directory).expanduser().resolve()


def _write_config(config: dict, dtype: np.dtype, draft: Path) -> None:
    names = [name for name in ("torch_dtype", "dtype") if name in config] or ["dtype"]
    config.update(dict.fromkeys(names, dtype.name))
    (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_weights(files, read: Callable[[str], np.ndarray], draft: Path) -> None:
    """One file, or several with an index; one file's tensors at a time are in host memory."""
    for file_name, names in files.filename_to_tensors.items():
        arrays = {name: read(name) for name in names}
        save_file(arrays, draft / file_name, {"format": "pt"})  # transformers refuses a file without the format
    if files.is_sharded:
        index = {"metadata": files.metadata, "weight_map": dict(sorted(files.tensor_to_filename.items()))}
        (draft / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _tensors(layout: list[Place]) -> dict[str, tuple[Place, int]]:
    """{name: (parameter, layer)} of the tensors that these parameters become, in the order of a checkpoint."""
    first = {place.hf_names[0]: (place, 0) for place in layout if not place.num_layers}
    stacked = [place for place in layout if place.num_layers]
    layers = range(max(place.num_layers for place in stacked))
    return first | {place.hf_names[layer]: (place, layer) for layer in layers for place in stacked}


def _tensor(place: Place, layer: int, params: dict, dtype: np.dtype) -> np.ndarray:
    array = _layer(params[place.path], layer) if place.num_layers else params[place.path]
    whole = np.asarray(array) if array.is_fully_addressable else multihost_utils.process_allgather(array, tiled=True)
    return place.write(whole.astype(dtype))


@jax.jit
def _layer(param: jax.Array, layer: int) -> jax.Array:
    """One layer on the devices: `layer` is traced, so that a shape compiles once and not once per layer."""
    return jax.lax.dynamic_index_in_dim(param, layer, keepdims=False)
