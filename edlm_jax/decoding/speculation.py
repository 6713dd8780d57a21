"""Linear self-speculation: one model drafts a block with masks and verifies it causally (arXiv 2607.05722).

Its output is the greedy AR output of the same weights, whatever the drafts are; good drafts only make it come sooner.
Shapes as in blocks.py. A cycle is two forwards and yields one token to C of them:

    cache (causal) | window
    a b c d e      | f M M M     draft:   the block sees itself both ways; f is known, g h i are proposed
    a b c d e      | f g h i     verify:  causal; says g h x after f, g, h: g and h stand, x replaces i
    a b c d e f g h| x M M M     next
"""

import jax
import jax.numpy as jnp

from edlm_jax.attention import Causal, attend
from edlm_jax.decoding.compiled import compiled
from edlm_jax.models.cache import DecodingWeights, Rotary, forward_cached, prefill


@compiled(static_argnames=("block_length", "room", "eos_id", "mask_id", "shifted"))
def decode_speculative(
    weights: DecodingWeights,
    prompts_BP,
    pad_B,
    limit,
    *,
    block_length: int,
    room: int,
    eos_id: int | None,
    mask_id: int,
    shifted: bool,
):
    """(tokens_BX, accepted_at_BX, counts_B, forwards_B): at most `limit` new tokens of each row, and what they took.

    `accepted_at_BX` is the row's forward that settled a token, from 1; the prefill is the first and settles one.
    """
    (B, P), C = prompts_BP.shape, block_length
    columns_S = jnp.arange(P + room + C)
    rotary = Rotary.of(weights.spec, P + room + C)

    def best(x_BTD):
        return jnp.argmax(weights.logits(x_BTD).at[..., mask_id].set(-jnp.inf), axis=-1).astype(jnp.int32)

    def window(cache, tokens_BC, start_B, last_seen_BC):
        """A forward of C columns from start_B on, each up to its own last column."""
        rotary_BC = rotary.at(start_B[:, None] + jnp.arange(C)[None] - pad_B[:, None])
        seen_BCS = columns_S[None, None] <= last_seen_BC[..., None]
        mask_BCS = seen_BCS & (columns_S[None, None] >= pad_B[:, None, None])
        return forward_cached(weights, cache, tokens_BC, rotary_BC, start_B, mask_BCS)

    def cycle(carry):
        tokens_BX, at_BX, cache, start_B, counts_B, forwards_B, done_B = carry
        columns_BC = start_B[:, None] + jnp.arange(C)[None]
        known_B1 = jnp.take_along_axis(tokens_BX, start_B[:, None], axis=1)
        noisy_BC = jnp.concatenate([known_B1, jnp.full((B, C - 1), mask_id, jnp.int32)], axis=1)
        x_BCD, cache = window(cache, noisy_BC, start_B, jnp.broadcast_to(start_B[:, None] + C - 1, (B, C)))
        proposed_BC = best(x_BCD)
        drafts = proposed_BC[:, :-1] if shifted else proposed_BC[:, 1:]
        x_BCD, cache = window(cache, jnp.concatenate([known_B1, drafts], axis=1), start_B, columns_BC)
        verified_BC = best(x_BCD)  # what AR says after each column of the window
        right = jnp.cumprod(drafts == verified_BC[:, :-1], axis=1).sum(axis=1)
        forwards_B = forwards_B + 2 * ~done_B
        return settle(tokens_BX, at_BX, cache, start_B, counts_B, forwards_B, done_B, verified_BC, right + 1)

    def settle(tokens_BX, at_BX, cache, start_B, counts_B, forwards_B, done_B, new_BT, settled_B):
        """Keeps the first `settled_B` of new_BT after start_B, up to an EOS or the limit."""
        index_1T = jnp.arange(new_BT.shape[1])[None]
        ends_BT = counts_B[:, None] + index_1T + 1 >= limit
        if eos_id is not None:
            ends_BT = ends_BT | (new_BT == eos_id)
        first_end_B = jnp.where(ends_BT.any(axis=1), jnp.argmax(ends_BT, axis=1) + 1, new_BT.shape[1] + 1)
        kept_B = jnp.where(done_B, 0, jnp.minimum(settled_B, first_end_B))
        kept_BT = index_1T < kept_B[:, None]
        tokens_BX = _put(tokens_BX, new_BT, start_B + 1, kept_BT)
        at_BX = _put(at_BX, jnp.broadcast_to(forwards_B[:, None], new_BT.shape), start_B + 1, kept_BT)
        done_B = done_B | (kept_B == first_end_B)
        return tokens_BX, at_BX, cache, start_B + kept_B, counts_B + kept_B, forwards_B, done_B

    columns_P = jnp.arange(P)[None]
    segments_BP = (columns_P >= pad_B[:, None]).astype(jnp.int32)
    attend_prompt = lambda _, q, k, v: attend(  # noqa: E731
        q, k, v, pattern=Causal(), q_segments_BT=segments_BP, k_segments_BS=segments_BP
    )
    rotary_BP = rotary.at(jnp.maximum(columns_P - pad_B[:, None], 0))
    read = dict(read_mask_BTS=segments_BP[:, None] > 0)  # of the last layer, the last column
    x_B1D, cache = prefill(weights, prompts_BP, rotary_BP, attend_prompt, keep=P, length=P + room + C, **read)
    zeros_B = jnp.zeros(B, jnp.int32)
    tokens_BX = jnp.pad(prompts_BP, ((0, 0), (0, room + C)))
    before = (tokens_BX, jnp.zeros_like(tokens_BX), cache, zeros_B + P - 1, zeros_B, zeros_B + 1, zeros_B > 0)
    started = settle(*before, best(x_B1D), 1)
    tokens_BX, at_BX, _, _, counts_B, forwards_B, _ = jax.lax.while_loop(lambda s: ~s[-1].all(), cycle, started)
    return tokens_BX, at_BX, counts_B, forwards_B


def _put(x_BX, new_BT, start_B, where_BT):
    def row(x_X, new_T, start, where_T):
        old_T = jax.lax.dynamic_slice_in_dim(x_X, start, new_T.shape[0])
        return jax.lax.dynamic_update_slice_in_dim(x_X, jnp.where(where_T, new_T, old_T), start, 0)

    return jax.vmap(row)(x_BX, new_BT, start_B, where_BT)
