"""The static-shape KV cache, and the forward pass that reads it.

Shapes: B batch, T new columns, S cache columns, K key heads, H head size, D width. Decoding runs layer by layer,
unrolled: its programs are small, and each layer's cache and weights are then buffers of their own that a compiled loop
updates in place.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from edlm_jax.models.rope import rotary_tables
from edlm_jax.models.transformer import Transformer, layer_forward


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Rotated keys and values of every layer; which columns hold something is the decoder's to know."""

    k_BSKH: tuple[jax.Array, ...]
    v_BSKH: tuple[jax.Array, ...]

    @classmethod
    def of(cls, keys_values: list[tuple[jax.Array, jax.Array]], length: int) -> "KVCache":
        """A cache of `length` columns that begins with the given (k_BTKH, v_BTKH) of each layer."""
        grow = lambda x: jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0)))  # noqa: E731
        return cls(tuple(grow(k) for k, _ in keys_values), tuple(grow(v) for _, v in keys_values))

    def write(self, keys_values: list[tuple[jax.Array, jax.Array]], start_B, where_B) -> "KVCache":
        """Puts each row's new columns at `start_B`, in the rows of `where_B` alone."""
        put = lambda cache, new: _write_rows(cache, new.astype(cache.dtype), start_B, where_B)  # noqa: E731
        return KVCache(
            tuple(put(cache, k) for cache, (k, _) in zip(self.k_BSKH, keys_values, strict=True)),
            tuple(put(cache, v) for cache, (_, v) in zip(self.v_BSKH, keys_values, strict=True)),
        )


def unstack_layers(model: Transformer) -> tuple[dict[str, jax.Array], ...]:
    """The parameters of each layer on their own, in the compute dtype."""
    stacked = model.layers.stacked(model.dtype)
    return tuple({name: x[i] for name, x in stacked.items()} for i in range(model.spec.num_layers))


def forward_unrolled(model: Transformer, layers, tokens_BT, positions_BT, attention):
    """(x_BTD after the final norm, [(k_BTKH, v_BTKH) a layer]); `attention(layer, q, k, v)` decides what is seen."""
    rotary = rotary_tables(positions_BT, model.spec.rope, model.spec.head_dim)
    x_BTD, kept = model.embed(tokens_BT), []
    for index, layer in enumerate(layers):

        def attend_and_keep(q, k, v, index=index):
            kept.append((k, v))
            return attention(index, q, k, v)

        x_BTD = layer_forward(model.spec, layer, x_BTD, rotary, attend_and_keep)
    return model.final_norm(x_BTD), kept


def _write_rows(cache_BSKH, new_BTKH, start_B, where_B):
    def row(cache_SKH, new_TKH, start, where):
        old_TKH = jax.lax.dynamic_slice_in_dim(cache_SKH, start, new_TKH.shape[0])
        return jax.lax.dynamic_update_slice_in_dim(cache_SKH, jnp.where(where, new_TKH, old_TKH), start, 0)

    if cache_BSKH.shape[0] == 1:  # no batch dimension to vectorise: a plain slice update instead of a scatter
        return row(cache_BSKH[0], new_BTKH[0], start_B[0], where_B[0])[None]
    return jax.vmap(row)(cache_BSKH, new_BTKH, start_B, where_B)
