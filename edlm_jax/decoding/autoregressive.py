"""The honest baseline: one token a forward; same weights, layers, cache and kind of compiled loop as block decoding.

Shapes as in blocks.py. All rows add one token a step, so the column is shared; a finished row stays frozen.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from edlm_jax.attention import Causal, attend, attend_masked
from edlm_jax.decoding.acceptance import propose
from edlm_jax.models.cache import KVCache, forward_unrolled


@partial(jax.jit, static_argnames=("graphdef", "room", "eos_id", "banned_id", "sample"))
def decode_autoregressive(
    graphdef, state, layers, prompts_BP, pad_B, seeds_B, limit, temperature, *, room, eos_id, banned_id, sample
):
    """(tokens_BX, counts_B): prompts with `room` more columns, at most `limit` filled, and how many each row has.

    The prefill yields the first token, so a row of n tokens has taken n forwards.
    """
    model = nnx.merge(graphdef, state)
    B, P = prompts_BP.shape
    keys_B = jax.vmap(jax.random.key)(seeds_B)
    columns_P, columns_S = jnp.arange(P)[None], jnp.arange(P + room - 1)[None]
    segments_BP = (columns_P >= pad_B[:, None]).astype(jnp.int32)

    def choose(x_B1D, column):
        keys = jax.vmap(lambda key: jax.random.fold_in(key, column - P))(keys_B) if sample else None
        return propose(model.logits(x_B1D), keys, temperature, banned_id=banned_id)[0]

    def attend_prompt(_, q, k, v):
        return attend(q, k, v, pattern=Causal(), q_segments_BT=segments_BP, k_segments_BS=segments_BP)

    def step(carry):
        tokens_BX, cache, column, done_B, counts_B, last_B1 = carry
        cached_B1S = ((columns_S >= pad_B[:, None]) & (columns_S < column))[:, None]

        def attention(index, q, k, v):
            return attend_masked(q, [(cache.k_BSKH[index], cache.v_BSKH[index], cached_B1S), (k, v, None)])

        x_B1D, kept = forward_unrolled(model, layers, last_B1, column - pad_B[:, None], attention)
        cache = KVCache(*(_put(old, [kv[i] for kv in kept], column) for i, old in enumerate(vars(cache).values())))
        return keep(tokens_BX, cache, column + 1, done_B, counts_B, choose(x_B1D, column + 1))

    def keep(tokens_BX, cache, column, done_B, counts_B, next_B1):
        tokens_BX = jax.lax.dynamic_update_slice(tokens_BX, jnp.where(done_B[:, None], 0, next_B1), (0, column))
        counts_B = counts_B + ~done_B
        ended_B = (counts_B >= limit) if eos_id is None else (counts_B >= limit) | (next_B1[:, 0] == eos_id)
        return tokens_BX, cache, column, done_B | ended_B, counts_B, next_B1

    positions_BP = jnp.maximum(columns_P - pad_B[:, None], 0)
    x_BPD, kept = forward_unrolled(model, layers, prompts_BP, positions_BP, attend_prompt)
    tokens_BX = jnp.pad(prompts_BP, ((0, 0), (0, room)))
    zeros_B = jnp.zeros(B, jnp.int32)
    first = keep(tokens_BX, KVCache.of(kept, P + room - 1), P, zeros_B > 0, zeros_B, choose(x_BPD[:, -1:], P))
    first = (*first[:2], jnp.asarray(first[2]), *first[3:])
    tokens_BX, _, _, _, counts_B, _ = jax.lax.while_loop(lambda carry: ~carry[3].all(), step, first)
    return tokens_BX, counts_B


def _put(layers_BSKH, new_B1KH, column):
    """Every layer's new column, in place."""
    return tuple(
        jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), column, 1)
        for old, new in zip(layers_BSKH, new_B1KH, strict=True)
    )
