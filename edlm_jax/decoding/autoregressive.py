"""The honest baseline: one token a forward; same weights, layers, cache and kind of compiled loop as block decoding.

Shapes as in blocks.py. All rows add one token a step, so the column is shared; a finished row stays frozen.
"""


import jax
import jax.numpy as jnp

from edlm_jax.attention import Causal
from edlm_jax.decoding.acceptance import Sampling
from edlm_jax.decoding.compiled import compiled
from edlm_jax.decoding.ends import is_end
from edlm_jax.models.cache import DecodingWeights, Rotary, forward_cached, prefill


@compiled(static_argnames=("room", "banned_id", "sampling"))
def decode_autoregressive(
    weights: DecodingWeights,
    prompts_BP,
    pad_B,
    seeds_B,
    ends_E,
    limit,
    temperature,
    *,
    room: int,
    banned_id: int | None,
    sampling: Sampling,
):
    """(tokens_BX, counts_B): prompts with `room` more columns, at most `limit` filled, and how many each row has.

    The prefill yields the first token, so a row of n tokens has taken n forwards.
    """
    B, P = prompts_BP.shape
    keys_B = jax.vmap(jax.random.key)(seeds_B)
    columns_P, columns_S = jnp.arange(P)[None], jnp.arange(P + room)[None]
    rotary = Rotary.of(weights.spec, P + room)
    segments_BP = (columns_P >= pad_B[:, None]).astype(jnp.int32)

    def choose(x_B1D, column):
        count_B = jnp.broadcast_to(column - P, (B,))
        return sampling.propose(weights.logits(x_B1D), keys_B, count_B, temperature, banned_id=banned_id).tokens_BC

    def step(carry):
        tokens_BX, cache, column, done_B, counts_B, last_B1 = carry
        mask_B1S = ((columns_S >= pad_B[:, None]) & (columns_S <= column))[:, None]
        x_B1D, cache = forward_cached(weights, cache, last_B1, rotary.at(column - pad_B[:, None]), column, mask_B1S)
        return keep(tokens_BX, cache, column + 1, done_B, counts_B, choose(x_B1D, column + 1))

    def keep(tokens_BX, cache, column, done_B, counts_B, next_B1):
        tokens_BX = jax.lax.dynamic_update_slice(tokens_BX, jnp.where(done_B[:, None], 0, next_B1), (0, column))
        counts_B = counts_B + ~done_B
        ended_B = (counts_B >= limit) | is_end(next_B1, ends_E)[:, 0]
        return tokens_BX, cache, column, done_B | ended_B, counts_B, next_B1

    rotary_BP = rotary.at(jnp.maximum(columns_P - pad_B[:, None], 0))
    read = dict(read_mask_BTS=segments_BP[:, None] > 0)  # of the last layer, the last column
    x_B1D, cache = prefill(weights, prompts_BP, rotary_BP, Causal(), segments_BP, keep=P, length=P + room, **read)
    tokens_BX = jnp.pad(prompts_BP, ((0, 0), (0, room)))
    zeros_B = jnp.zeros(B, jnp.int32)
    first = keep(tokens_BX, cache, jnp.asarray(P), zeros_B > 0, zeros_B, choose(x_B1D, P))
    tokens_BX, _, _, _, counts_B, _ = jax.lax.while_loop(lambda carry: ~carry[3].all(), step, first)
    return tokens_BX, counts_B
