"""A Hugging Face checkpoint or GGUF file into a Transformer: each device's shard is read straight from the file."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, SingleDeviceSharding

from edlm_jax.errors import InputError, refusing
from edlm_jax.models.lora import Lora
from edlm_jax.models.spec import ModelSpec
from edlm_jax.models.transformer import Transformer
from edlm_jax.parallel.sharding import named_sharding
from edlm_jax.pretrained.adapter import DIRECTORY, WEIGHTS, adapter_places, check_adapter, read_lora
from edlm_jax.pretrained.checkpoint import Checkpoint
from edlm_jax.pretrained.gguf.checkpoint import GgufCheckpoint
from edlm_jax.pretrained.layout import Place, places
from edlm_jax.pretrained.source import find_directory, find_gguf, read_config

FLOATS = ("float32", "bfloat16", "float16")


def load_spec(path_or_repo: str | Path) -> ModelSpec:
    """What a model is, from its config.json: no tensor is read, of a hub id none is downloaded."""
    directory = find_directory(path_or_repo, weights=False).absolute()
    # A list where a name or an object belongs, say, is either error.
    with refusing(f"{directory / 'config.json'} does not describe a model", TypeError, AttributeError):
        return ModelSpec.from_hf(read_config(directory), source=str(directory))


def load_pretrained(
    path_or_repo: str | Path, dtype: str = "bfloat16", mesh: Mesh | None = None, *, param_dtype: str | None = None
) -> Transformer:
    """A Hugging Face directory or GGUF file (no network), a hub id or `smollm2`, as a model, AR or converted.

    It computes in `dtype` and stores its parameters in `param_dtype`, which is `dtype` unless given. With a mesh the
    parameters are sharded by parallel/sharding.py; no host ever holds more than one of them. Adapters of noisy columns
    that lie beside a model (adapter.py) come with it.
    """
    param_dtype = dtype if param_dtype is None else param_dtype
    for name in (dtype, param_dtype):
        if name not in FLOATS:
            raise InputError(f"dtype {name!r} is not one of {', '.join(FLOATS)}")
    with open_parameters(path_or_repo, param_dtype, mesh) as readers:
        arrays = {path: read() for path, read in readers.items()}
    lora = read_lora(find_directory(path_or_repo))
    return assemble(load_spec(path_or_repo), arrays, dtype, param_dtype, lora)


def open_checkpoint(path_or_repo: str | Path) -> Checkpoint | GgufCheckpoint:
    """The tensors of a model that `load_pretrained` takes, without adapters beside it."""
    file = find_gguf(path_or_repo)
    return GgufCheckpoint(file) if file else Checkpoint(find_directory(path_or_repo))


@contextlib.contextmanager
def open_parameters(
    path_or_repo: str | Path, dtype: str, mesh: Mesh | None = None
) -> Iterator[dict[tuple[str, ...], Callable[[], jax.Array]]]:
    """{path: what reads this parameter} of a model that `load_pretrained` takes, checked, while its files are open.

    Whoever drops each before the next is read never holds two.
    """
    spec, directory = load_spec(path_or_repo), find_directory(path_or_repo)
    with contextlib.ExitStack() as stack:
        checkpoint = stack.enter_context(open_checkpoint(path_or_repo))
        layout = checkpoint.rename(places(spec))
        checkpoint.check({name: place.hf_shape for place in layout for name in place.hf_names}, tied=spec.tied)
        held = [(place, checkpoint) for place in layout]
        if lora := read_lora(directory):
            adapter = stack.enter_context(Checkpoint(directory / DIRECTORY, WEIGHTS))
            check_adapter(adapter, checkpoint, spec, lora)
            held += [(place, adapter) for place in adapter_places(spec, lora)]
        yield {place.path: partial(_read, place, file, dtype, mesh) for place, file in held}


def _read(place: Place, checkpoint: Checkpoint, dtype: str, mesh: Mesh | None) -> jax.Array:
    shards: dict[tuple, np.ndarray] = {}  # replicas on several devices share one read

    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None  # of another process: not asked for
        ranges = tuple(part.indices(size)[:2] for part, size in zip(index, place.shape, strict=True))
        if ranges not in shards:
            shards[ranges] = _read_shard(place, checkpoint, np.dtype(dtype), ranges)
        return shards[ranges]

    alone = SingleDeviceSharding(jax.local_devices()[0])
    sharding = alone if mesh is None else named_sharding(mesh, place.path[-1], place.shape)
    array = jax.make_array_from_callback(place.shape, sharding, shard, dtype=np.dtype(dtype))
    return array.block_until_ready()  # so that its host copy is gone before the next is read


def _read_shard(place: Place, checkpoint: Checkpoint, dtype: np.dtype, ranges: tuple) -> np.ndarray:
    index = tuple(slice(*r) for r in ranges)
    if not place.num_layers:
        return np.ascontiguousarray(place.read(checkpoint[place.template], index), dtype)
    stacked = np.empty([stop - start for start, stop in ranges], dtype)
    for row, layer in enumerate(range(*ranges[0])):
        stacked[row] = place.read(checkpoint[place.hf_names[layer]], index[1:])
    return stacked


def assemble(
    spec: ModelSpec, arrays: dict[tuple, jax.Array], dtype: str, param_dtype: str, lora: Lora | None = None
) -> Transformer:
    """The model of a spec from its parameters by path."""
    build = lambda: Transformer(spec, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=param_dtype, lora=lora)  # noqa: E731
    graph, state = nnx.split(nnx.eval_shape(build))
    flat = dict(nnx.to_flat_state(state))
    if flat.keys() != arrays.keys():
        raise AssertionError(f"layout.py and transformer.py disagree: {sorted(flat.keys() ^ arrays.keys())}")
    filled = {path: variable.replace(arrays[path]) for path, variable in flat.items()}
    return nnx.merge(graph, nnx.from_flat_state(filled))
