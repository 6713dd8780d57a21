"""What a run starts from: the model's spec, its tokenizer and mask token, and a sharded state."""

import dataclasses
import functools
import json
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from absl import logging
from flax import nnx
from jax.sharding import Mesh

from edlm_jax.attention import Tiles
from edlm_jax.errors import InputError
from edlm_jax.models.layer import layer_shapes
from edlm_jax.models.lora import ADAPTER_NAMES, Lora, combine, initial_adapters, partition, without_adapters
from edlm_jax.models.spec import Conversion, ModelSpec
from edlm_jax.models.transformer import Transformer
from edlm_jax.parallel.sharding import param_shardings
from edlm_jax.pretrained import load_pretrained, load_spec, load_tokenizer, open_parameters
from edlm_jax.pretrained.adapter import read_lora
from edlm_jax.pretrained.mask_token import choose_mask_token, start_mask_embedding
from edlm_jax.pretrained.source import find_directory
from edlm_jax.pretrained.text import listed_ends
from edlm_jax.training.checkpoint import abstract_model, with_shardings
from edlm_jax.training.optimizer import Optimizer, make_optimizer
from edlm_jax.training.step import TrainState

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DECAYED = 0.1  # of the median norm of embeddings: below, the first norm layer multiplies gradients by over ten


@dataclasses.dataclass(frozen=True)
class Start:
    """The model that a run begins with, and how it is computed: config.init says what its fields mean."""

    path: str
    hf_config: dict[str, Any]
    mask_token_id: int
    mask_embedding: str
    adapters: str
    tokenizer: str  # of the data; "" = the model's
    conversion: Conversion | None  # what the export will say, but for the mask token; None for AR
    seed: int
    dtype: str
    tiles: Tiles | None  # what attention computes at once; None = the backend's own
    lora: Lora | None


def read_spec(start: Start) -> tuple[ModelSpec, "PreTrainedTokenizerBase"]:
    """The spec of what will be trained, conversion included, and its tokenizer; reads no weights."""
    spec = load_spec(start.path) if start.path else ModelSpec.from_hf(start.hf_config)
    if start.hf_config:  # a config that says what shape its checkpoint has must be right about it
        said, others = ModelSpec.from_hf(start.hf_config), ("conversion", "hf_json", "source")
        wrong = [name for name, value in vars(spec).items() if name not in others and getattr(said, name) != value]
        if wrong:
            raise InputError(f"config.init.hf_config is not the shape of {start.path}: {', '.join(wrong)} differ")
    spec, tokenizer = _with_tokenizer(spec, start.tokenizer or spec.source)
    if start.conversion is None:
        return dataclasses.replace(spec, conversion=None), tokenizer
    override = start.mask_token_id
    if override == -1 and spec.conversion is not None:  # converted before: it knows its mask
        override = spec.conversion.mask_token_id
    mask_id = choose_mask_token(tokenizer, spec, override)
    return dataclasses.replace(spec, conversion=dataclasses.replace(start.conversion, mask_token_id=mask_id)), tokenizer


def planned_spec(start: Start) -> ModelSpec:
    """The spec of what would be trained, without tokenizer or weights: all that compiling needs.

    It comes from `hf_config` where that is set, so that a hub id need not be reachable. Which slot the mask token is
    changes nothing in a program.
    """
    spec = ModelSpec.from_hf(start.hf_config) if start.hf_config else load_spec(start.path)
    return dataclasses.replace(spec, conversion=start.conversion)


def abstract_state(start: Start, optimizer: Optimizer, spec: ModelSpec, mesh: Mesh) -> tuple[nnx.GraphDef, TrainState]:
    """(graph definition, state of ShapeDtypeStructs with their shardings)."""
    graphdef, params = abstract_model(spec, start.dtype, mesh, start.tiles, start.lora)

    def build(params):
        opt_state = make_optimizer(optimizer).init(partition(params, start.lora)[0])
        return TrainState(jnp.int32(0), _stored(start, params), opt_state)

    state = jax.eval_shape(build, params)
    return graphdef, with_shardings(state, param_shardings(mesh, state))


def initial_params(start: Start, spec: ModelSpec, mesh: Mesh) -> dict:
    """Parameters as the run starts with them."""
    if start.adapters == "keep":
        _check_kept(start)
    params = _base_params(start, spec, mesh)
    params["layers"] = without_adapters(params["layers"])  # those of a drafter that was trained before
    if start.adapters == "keep":
        with open_parameters(start.path, "float32", mesh) as readers:  # the base was read in the compute dtype
            params["layers"] |= {path[-1]: read() for path, read in readers.items() if path[-1] in ADAPTER_NAMES}
    elif start.lora:
        key = jax.random.fold_in(jax.random.key(start.seed), 2**31 - 1)  # the mask's embedding has a token's number
        params["layers"] |= _initial_adapters(key, spec, start.lora, mesh)
    return _stored(start, params)


def _check_kept(start: Start) -> None:
    """Before weights are read: the adapters beside them must be those that the config describes."""
    found = read_lora(find_directory(start.path))
    if found is None:
        raise InputError(f"config.init.adapters='keep': {start.path} has no adapters of noisy columns beside it")
    if found != start.lora:
        sizes = ", ".join(f"{name}={value!r}" for name, value in vars(found).items())
        raise InputError(f"config.init.adapters='keep' needs the config.lora of the adapters in {start.path}: {sizes}")


@functools.partial(jax.jit, static_argnames=("spec", "lora", "mesh"))
def _initial_adapters(key, spec: ModelSpec, lora: Lora, mesh: Mesh) -> dict:
    adapters = initial_adapters(key, layer_shapes(spec), spec.num_layers, lora)
    return jax.lax.with_sharding_constraint(adapters, param_shardings(mesh, adapters))


def _base_params(start: Start, spec: ModelSpec, mesh: Mesh) -> dict:
    if not start.path:
        build = lambda: nnx.to_pure_dict(nnx.state(Transformer(spec, rngs=nnx.Rngs(start.seed))))  # noqa: E731
        return jax.jit(build, out_shardings=param_shardings(mesh, jax.eval_shape(build)))()
    gated = start.lora is not None and start.lora.gated
    model = load_pretrained(start.path, dtype=start.dtype if gated else "float32", mesh=mesh)
    if spec.conversion is not None and not gated:
        mask_id = spec.conversion.mask_token_id
        key = jax.random.fold_in(jax.random.key(start.seed), mask_id)
        ratio = start_mask_embedding(model, mask_id, how=start.mask_embedding, key=key)
        if ratio < _DECAYED:
            message = "the mask's embedding has %.2g of the median norm: gradients may explode; see init.mask_embedding"
            logging.warning(message, ratio)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return jax.device_put(params, param_shardings(mesh, params))


def initial_state(start: Start, optimizer: Optimizer, params: dict, abstract: TrainState) -> TrainState:
    """Step 0 with these parameters."""
    shardings, (trained, _) = jax.tree.map(lambda x: x.sharding, abstract), partition(params, start.lora)
    opt_state = jax.jit(make_optimizer(optimizer).init, out_shardings=shardings.opt_state)(trained)
    return TrainState(jax.device_put(jnp.int32(0), shardings.step), params, opt_state)


def _stored(start: Start, params: dict) -> dict:
    """What is trained in float32, the rest in the compute dtype: nothing reads more of it."""
    trained, frozen = partition(params, start.lora)
    return combine(trained, jax.tree.map(lambda x: x.astype(start.dtype), frozen))


def _with_tokenizer(spec: ModelSpec, path: str) -> tuple[ModelSpec, "PreTrainedTokenizerBase"]:
    """The spec with the tokenizer that its model is trained with, and that tokenizer."""
    if not path:
        raise InputError("set config.data.tokenizer: random weights come without a tokenizer")
    tokenizer = load_tokenizer(path, spec.vocab_size)
    source = str(find_directory(path, weights=False).absolute())
    config, end = json.loads(spec.hf_json), tokenizer.eos_token_id
    if source != spec.source:  # it brings all of its ids: those of the checkpoint's own may be words there
        ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = {name: value for name, value in config.items() if name not in ids}
        config |= {name: value for name, value in ids.items() if value is not None}
    elif end is not None and end not in (others := listed_ends(config)):  # but this is the one that is learned
        config["eos_token_id"] = [end, *others] if others else end
    return dataclasses.replace(spec, source=source, hf_json=json.dumps(config, indent=2)), tokenizer
