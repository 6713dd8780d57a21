"""Attention over a cache, and the cache's update in place, in C++ behind `jax.ffi` (attention.cc).

Shapes: B batch, T new columns, S cache columns, N query heads, K key heads, H head size. float32, no gradient.
A query's bits depend on its own visible columns and on nothing else.

With a table int32[B, G] the cache is one of pages (models/kv_cache.py), [pages, K, S / G, H], S / G a multiple of 16.
"""

import jax
import jax.numpy as jnp


def attend(q_BTNH, k_BKSH, v_BKSH, mask_BTS, table_BG=None):
    """float32[B, T, N, H]: attention over a cache, whose heads lie in front of its columns, under the mask."""
    B, T = q_BTNH.shape[:2]
    table_BG = _table(table_BG, B)
    mask_BTS = jnp.broadcast_to(mask_BTS, (B, T, table_BG.shape[1] * k_BKSH.shape[2]))
    out = jax.ShapeDtypeStruct(q_BTNH.shape, jnp.float32)
    if not q_BTNH.size:
        return q_BTNH
    return jax.ffi.ffi_call("edlm_attention", out)(q_BTNH, k_BKSH, v_BKSH, table_BG, mask_BTS)


def write(k_BKSH, v_BKSH, new_k_BTKH, new_v_BTKH, start, where_BT, table_BG=None):
    """Both caches with the new columns from `start` on, an int or int32[B], where `where_BT` (None: everywhere)."""
    B, T = new_k_BTKH.shape[:2]
    where_BT = jnp.ones((B, T), bool) if where_BT is None else jnp.broadcast_to(where_BT, (B, T))
    start_B = jnp.broadcast_to(jnp.asarray(start, jnp.int32), (B,))
    caches = [jax.ShapeDtypeStruct(cache.shape, cache.dtype) for cache in (k_BKSH, v_BKSH)]
    call = jax.ffi.ffi_call("edlm_write", caches, input_output_aliases={5: 0, 6: 1})
    return call(new_k_BTKH, new_v_BTKH, start_B, where_BT, _table(table_BG, B), k_BKSH, v_BKSH)


def _table(table_BG, B: int):
    """Without pages each row is one."""
    return jnp.arange(B, dtype=jnp.int32)[:, None] if table_BG is None else table_BG
