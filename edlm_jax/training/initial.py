"""What a run starts from: the model's spec, its tokenizer and mask token, and a sharded state."""

import dataclasses
import functools
import json
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from absl import logging
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from edlm_jax.errors import InputError
from edlm_jax.models.layer import layer_shapes
from edlm_jax.models.lora import Lora, combine, initial_adapters, partition
from edlm_jax.models.spec import ModelSpec
from edlm_jax.models.transformer import Transformer
from edlm_jax.parallel.sharding import param_shardings
from edlm_jax.pretrained import choose_mask_token, load_pretrained, load_spec, load_tokenizer, start_mask_embedding
from edlm_jax.pretrained.source import find_directory
from edlm_jax.pretrained.text import listed_ends
from edlm_jax.training.checkpoint import abstract_model, with_shardings
from edlm_jax.training.config import adapters, attention_tiles, conversion, layout
from edlm_jax.training.optimizer import make_optimizer
from edlm_jax.training.step import TrainState

_DECAYED = 0.1  # of the median norm of embeddings: below, the first norm layer multiplies gradients by over ten

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_spec(c: ConfigDict) -> tuple[ModelSpec, "PreTrainedTokenizerBase"]:
    """The spec of what will be trained, conversion included, and its tokenizer; reads no weights."""
    if c.init.path:
        spec = load_spec(c.init.path)
        _check_shape(c, spec)
    else:
        spec = ModelSpec.from_hf(c.init.hf_config.to_dict())
    spec, tokenizer = _with_tokenizer(spec, c.data.tokenizer or spec.source)
    if not layout(c).noisy:
        return dataclasses.replace(spec, conversion=None), tokenizer
    override = c.init.mask_token_id
    if override == -1 and spec.conversion is not None:  # converted before: it knows its mask
        override = spec.conversion.mask_token_id
    mask_id = choose_mask_token(tokenizer, spec, override)
    return dataclasses.replace(spec, conversion=conversion(c, mask_id)), tokenizer


def planned_spec(c: ConfigDict) -> ModelSpec:
    """The spec of what would be trained, without tokenizer or weights: all that compiling needs.

    It comes from c.init.hf_config where that is set, so that a hub id need not be reachable.
    """
    spec = ModelSpec.from_hf(c.init.hf_config.to_dict()) if c.init.hf_config else load_spec(c.init.path)
    mask_id = max(c.init.mask_token_id, 0)  # which slot it is changes nothing in a program
    return dataclasses.replace(spec, conversion=conversion(c, mask_id))


def abstract_state(c: ConfigDict, spec: ModelSpec, mesh: Mesh) -> tuple[nnx.GraphDef, TrainState]:
    """(graph definition, state of ShapeDtypeStructs with their shardings)."""
    graphdef, params = abstract_model(spec, c.dtype, mesh, attention_tiles(c), adapters(c))

    def build(params):
        return TrainState(jnp.int32(0), _stored(c, params), make_optimizer(c).init(partition(params, adapters(c))[0]))

    state = jax.eval_shape(build, params)
    return graphdef, with_shardings(state, param_shardings(mesh, state))


def initial_params(c: ConfigDict, spec: ModelSpec, mesh: Mesh) -> dict:
    """Parameters as the run starts with them; a run from a checkpoint reads it again at every call."""
    params, lora = _base_params(c, spec, mesh), adapters(c)
    if lora is None:
        return params
    key = jax.random.fold_in(jax.random.key(c.seed), 2**31 - 1)  # the mask's embedding has a token's number
    return _stored(c, params | {"layers": params["layers"] | _initial_adapters(key, spec, lora, mesh)})


@functools.partial(jax.jit, static_argnames=("spec", "lora", "mesh"))
def _initial_adapters(key, spec: ModelSpec, lora: Lora, mesh: Mesh) -> dict:
    adapters = initial_adapters(key, layer_shapes(spec), spec.num_layers, lora)
    return jax.lax.with_sharding_constraint(adapters, param_shardings(mesh, adapters))


def _base_params(c: ConfigDict, spec: ModelSpec, mesh: Mesh) -> dict:
    if not c.init.path:
        build = lambda: _pure(Transformer(spec, rngs=nnx.Rngs(c.seed), param_dtype="float32"))  # noqa: E731
        return jax.jit(build, out_shardings=param_shardings(mesh, jax.eval_shape(build)))()
    gated = c.lora.rank and c.lora.columns == "noisy"
    model = load_pretrained(c.init.path, dtype=c.dtype if gated else "float32", mesh=mesh)
    if spec.conversion is not None and not gated:
        mask_key = jax.random.fold_in(jax.random.key(c.seed), spec.conversion.mask_token_id)
        how = c.init.mask_embedding
        ratio = start_mask_embedding(model, spec.conversion.mask_token_id, how=how, key=mask_key)
        if ratio < _DECAYED:
            message = "the mask's embedding has %.2g of the median norm: gradients may explode; see init.mask_embedding"
            logging.log_first_n(logging.WARNING, message, 1, ratio)  # the parameters are read again at every evaluation
    return jax.device_put(_pure(model), param_shardings(mesh, _pure(model)))


def initial_state(c: ConfigDict, params: dict, abstract: TrainState) -> TrainState:
    """Step 0 with these parameters."""
    shardings, trained = jax.tree.map(lambda x: x.sharding, abstract), partition(params, adapters(c))[0]
    opt_state = jax.jit(make_optimizer(c).init, out_shardings=shardings.opt_state)(trained)
    return TrainState(jax.device_put(jnp.int32(0), shardings.step), params, opt_state)


def _check_shape(c: ConfigDict, spec: ModelSpec) -> None:
    """A config that says what shape its checkpoint has must be right about it."""
    if not c.init.hf_config:
        return
    said = ModelSpec.from_hf(c.init.hf_config.to_dict())
    names = [field.name for field in dataclasses.fields(spec) if field.name not in ("conversion", "hf_json", "source")]
    wrong = [name for name in names if getattr(said, name) != getattr(spec, name)]
    if wrong:
        raise InputError(f"config.init.hf_config is not the shape of {c.init.path}: {', '.join(wrong)} differ")


def _stored(c: ConfigDict, params: dict) -> dict:
    """What is trained in float32, the rest in the compute dtype: nothing reads more of it."""
    trained, frozen = partition(params, adapters(c))
    return combine(trained, jax.tree.map(lambda x: x.astype(c.dtype), frozen))


def _pure(model: Transformer) -> dict:
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def _with_tokenizer(spec: ModelSpec, path: str) -> tuple[ModelSpec, "PreTrainedTokenizerBase"]:
    """The spec with the tokenizer that its model is trained with, and that tokenizer.

    Its end of text is the one that is learned, so config.json names it. A tokenizer of another directory brings all of
    its ids: those of the checkpoint's own may be words there.
    """
    if not path:
        raise InputError("set config.data.tokenizer: random weights come without a tokenizer")
    tokenizer = load_tokenizer(path, spec.vocab_size)
    source = str(find_directory(path, weights=False).absolute())
    config, end = json.loads(spec.hf_json), tokenizer.eos_token_id
    if source != spec.source:
        ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = {name: value for name, value in config.items() if name not in ids}
        config |= {name: value for name, value in ids.items() if value is not None}
    elif end is not None and end not in (others := listed_ends(config)):
        config["eos_token_id"] = [end, *others] if others else end
    return dataclasses.replace(spec, source=source, hf_json=json.dumps(config, indent=2)), tokenizer
