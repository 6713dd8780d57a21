"""Decoding's side of the model: weights laid out for it, and the forwards that use them and the cache (kv_cache.py).

Shapes: B batch, T new columns, S cache columns, K key heads, H head size, D width, V vocabulary. Decoding runs layer by
layer, unrolled: its programs are small, and each layer's cache and weights are then buffers of their own that a
compiled loop updates in place.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from edlm_jax.attention import Pattern
from edlm_jax.errors import InputError
from edlm_jax.models.backend import Xla, choose, expected
from edlm_jax.models.kv_cache import KVCache
from edlm_jax.models.layer import fuse_projections, layer_forward, norm, scaled_embedding
from edlm_jax.models.lora import DECODED_ADAPTERS, Lora, opened
from edlm_jax.models.product import project
from edlm_jax.models.spec import ModelSpec
from edlm_jax.models.transformer import Transformer
from edlm_jax.parallel import cpu
from edlm_jax.parallel.devices import platform
from edlm_jax.parallel.mesh import mesh_of, on_mesh
from edlm_jax.parallel.sharding import DECODING, constrain

Attention = Callable[[int, jax.Array, jax.Array, jax.Array], jax.Array]  # (layer, q_BTNH, k_BTKH, v_BTKH) -> out_BTNH


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodingWeights:
    """A model's parameters in its compute dtype, layer by layer, with q, k, v and gate, up each as one matrix.

    Matrices lie as the backend wants them. A tied embedding is held once where one layout serves both of its uses.
    Adapters of noisy columns lie beside them: `forward` is told which columns are.
    """

    spec: ModelSpec = field(metadata=dict(static=True))
    backend: Xla = field(metadata=dict(static=True))
    embedding_VD: jax.Array | None  # None: tied, read from the packed head
    layers: tuple[dict[str, jax.Array | cpu.Packed | cpu.Scale], ...]
    final_norm_D: jax.Array | cpu.Scale
    head_DV: jax.Array | cpu.Packed | None  # None: tied, read from the embedding

    @classmethod
    def of(cls, model: Transformer, *, take: bool = False) -> "DecodingWeights":
        """Laid out once, on the devices where the model lies; later changes of it are not followed.

        On a mesh each group of `tensor` devices holds them once. With `take` the model is emptied parameter by
        parameter, so that its weights and these never stand side by side.
        """
        if model.layers.lora and not model.layers.gated:
            raise InputError("this model's adapters are not merged; read its run with load_trained, which merges them")
        spec, backend = model.spec, choose(model)
        read = lambda name: getattr(model, name)[...].astype(model.dtype)  # noqa: E731
        with on_mesh(mesh_of(nnx.state(model))):
            embedding_VD, head_DV = read("embedding_VD"), None
            # On CPU a product with the transposed embedding costs several times one with a head of its own (measured).
            if not spec.tied or platform() == "cpu":
                head_DV = backend.lay("head_DV", embedding_VD.T if spec.tied else read("head_DV"))
            in_head = spec.tied and isinstance(head_DV, cpu.Packed)
            embedding_VD = None if in_head else backend.lay("embedding_VD", embedding_VD)
            layers = tuple({n: backend.lay(n, w) for n, w in layer.items()} for layer in _fused_layers(model, take))
            return cls(spec, backend, embedding_VD, layers, backend.lay("final_norm_D", read("final_norm_D")), head_DV)

    @classmethod
    def planned(cls, spec: ModelSpec, dtype: str, lora: Lora | None, *, alone: bool) -> "DecodingWeights":
        """Shapes in place of the arrays of a model that nobody has read yet, on one device if `alone`."""
        weights = lambda: cls.of(Transformer(spec, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=dtype, lora=lora))  # noqa: E731
        return replace(jax.eval_shape(weights), backend=expected(dtype, alone))

    @property
    def gated(self) -> bool:
        """Are there adapters, which act on noisy columns alone?"""
        return not DECODED_ADAPTERS.isdisjoint(self.layers[0])

    @property
    def mesh(self) -> Mesh | None:
        """Where they lie; None is one device."""
        return mesh_of(self.final_norm_D)

    @property
    def groups(self) -> int:
        """Of devices, each of which decodes rows of its own."""
        return 1 if self.mesh is None else math.prod(self.mesh.shape[axis] for axis in DECODING.B)

    @property
    def dtype(self):
        """What is computed in."""
        return jax.tree.leaves(self.final_norm_D)[0].dtype

    @cached_property
    def nbytes(self) -> int:
        """Of all of them together."""
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self))

    def embed(self, tokens) -> jax.Array:
        """[..., D]: the embeddings of token ids, in the compute dtype."""
        x = self.head_DV.columns(tokens) if self.embedding_VD is None else self.embedding_VD[tokens]
        return scaled_embedding(self.spec, x)

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """float32[B, T, V] of final hidden states."""
        if self.head_DV is None:
            return jnp.einsum("BTD,VD->BTV", x_BTD, self.embedding_VD, preferred_element_type=jnp.float32)
        return project(x_BTD, self.head_DV, dtype=jnp.float32)


def _fused_layers(model, take):
    """Layer by layer, so that no second copy of the model ever stands beside the first."""
    stacked = model.layers.stacked()
    if take:
        for name, whole in stacked.items():
            stacked[name] = [whole[i] for i in range(len(whole))]  # list(whole) leaves the mesh
            whole.delete()
    for i in range(model.spec.num_layers):
        layer = {name: x[i].astype(model.dtype) for name, x in stacked.items()}
        if take:
            for x in stacked.values():
                x[i] = None
        yield fuse_projections(layer)


class Rotary(NamedTuple):
    """Where columns stand: their positions, and cos and sin of each kind of layer.

    Those of all positions are made once before the loop: inside, each layer would work them out again.
    """

    positions_BT: jax.Array
    tables: tuple[tuple[jax.Array, jax.Array] | None, ...]

    @classmethod
    def of(cls, spec: ModelSpec, length: int) -> "Rotary":
        """Of the columns of a row, which stand at 0 to length - 1."""
        return cls(jnp.arange(length), spec.rotary(jnp.arange(length)))

    def at(self, positions_BT) -> "Rotary":
        """Of columns at these positions."""
        return Rotary(positions_BT, jax.tree.map(lambda table_SR: table_SR[positions_BT], self.tables))


def _near(window: int | None, mask_BTS, q_positions_BT, k_positions_BS) -> jax.Array:
    """The mask of layers that have this window."""
    if window is None:
        return mask_BTS
    return mask_BTS & (abs(q_positions_BT[:, :, None] - k_positions_BS[:, None]) < window)


def forward(
    weights: DecodingWeights,
    tokens_BT,
    rotary_BT,
    attention: Attention,
    read: int | None = None,
    drafts: int = 0,
    streams: list | None = None,
):
    """Hidden states x_BTD after the final norm; `attention` decides what is seen and may keep keys and values.

    `tokens_BT` are ids; embeddings [B, T, D] may stand in their place. Of the last layer only the last `read` columns
    (default: all) are computed: the others give keys and values alone. The last `drafts` columns are noisy ones:
    adapters, where the model has any, act on them. `streams` gets the residual stream before each layer and at the end.
    """
    spec = weights.spec
    x_BTD = constrain(tokens_BT if tokens_BT.ndim == 3 else weights.embed(tokens_BT), "B__", DECODING)
    whole, last = (lambda x_BT: x_BT), (lambda x_BT: x_BT[:, -read if read else None :])
    streams = [] if streams is None else streams
    for index, (layer, wanted) in enumerate(zip(weights.layers, [whole] * (spec.num_layers - 1) + [last], strict=True)):
        streams.append(x_BTD)
        p, tables = opened(layer, drafts), rotary_BT.tables[index % len(spec.kinds)]
        x_BTD = layer_forward(spec, p, x_BTD, tables, partial(attention, index), wanted)
        x_BTD = constrain(x_BTD, "B__", DECODING)
    streams.append(x_BTD)
    return norm(spec, x_BTD, weights.final_norm_D)


def prefill(
    weights: DecodingWeights,
    tokens_BT,
    rotary_BT,
    pattern: Pattern,
    segments_BT,
    *,
    keep: int,
    length: int,
    read_mask_BTS=None,
    drafts: int = 0,
    streams: list | None = None,
):
    """(x_BTD, a cache of `length` columns that begins with the first `keep` of these); padding is segment 0.

    `read_mask_BTS`: only so many last columns are read, and this is what they see. The rest: as in `forward`.
    """
    keys, values, backend, spec = [], [], weights.backend, weights.spec
    weights, _ = backend.only(segments_BT > 0, weights)
    attend_all = {window: backend.attend_prompt(spec, pattern.within(window), segments_BT) for window in spec.windows}
    positions_BT = rotary_BT.positions_BT

    def attend_and_keep(index, q, k, v):
        for kept, x_BTKH in ((keys, k), (values, v)):
            x_BKTH = x_BTKH[:, :keep].swapaxes(1, 2)
            x_BKSH = jnp.pad(x_BKTH, ((0, 0), (0, 0), (0, length - keep), (0, 0)))
            kept.append(constrain(x_BKSH, "BK__", DECODING))
        window = spec.kind(index).window
        if q.shape[1] < k.shape[1]:
            mask_BTS = _near(window, read_mask_BTS, positions_BT[:, -q.shape[1] :], positions_BT)
            return backend.attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask_BTS)
        return attend_all[window](q, k, v)

    read = None if read_mask_BTS is None else read_mask_BTS.shape[1]
    x_BTD = forward(weights, tokens_BT, rotary_BT, attend_and_keep, read, drafts, streams)
    kept_BT = jnp.broadcast_to(positions_BT, tokens_BT.shape[:2])[:, :keep]
    positions_BS = None if spec.windows == (None,) else jnp.pad(kept_BT, ((0, 0), (0, length - keep)))
    return x_BTD, KVCache(tuple(keys), tuple(values), positions_BS)


def forward_cached(
    weights: DecodingWeights,
    cache: KVCache,
    tokens_BT,
    rotary_BT,
    start,
    mask_BTS,
    where_BT=None,
    read: int | None = None,
    drafts: int = 0,
    wanted_BT=None,
):
    """(x_BTD, cache): writes the new columns at `start`, an int or int32[B], then attends to the cache under the mask.

    `where_BT` says which of them to write (default: all); the others keep what the cache has there. `read` and
    `drafts`: as in `forward`. `wanted_BT` (or [B, 1]): what other columns give and write, nobody reads (default: all).
    """
    keys, values, backend, spec = list(cache.k_BKSH), list(cache.v_BKSH), weights.backend, weights.spec
    if wanted_BT is not None:
        weights, mask_BTS = backend.only(wanted_BT, weights, mask_BTS)
    new_positions_BT = jnp.broadcast_to(rotary_BT.positions_BT, tokens_BT.shape[:2])
    cache = cache.placed(new_positions_BT, start, where_BT)
    where = rotary_BT.positions_BT, cache.positions_of_rows()
    masks = {window: _near(window, mask_BTS, *where) for window in spec.windows}

    def attention(index, q, k, v):
        caches = keys[index], values[index]
        keys[index], values[index] = backend.write(*caches, k, v, start, where_BT, cache.table_BG)
        mask_BTS = masks[spec.kind(index).window][:, -q.shape[1] :]
        return backend.attend(q, keys[index], values[index], mask_BTS, cache.table_BG)

    x_BTD = forward(weights, tokens_BT, rotary_BT, attention, read, drafts)
    return x_BTD, replace(cache, k_BKSH=tuple(keys), v_BKSH=tuple(values))
