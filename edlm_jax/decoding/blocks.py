"""Block diffusion decoding as one compiled loop (arXiv 2512.14067, section 3.4).

Shapes: B rows, P prompt columns (left-padded, a multiple of C), C block length, X = P + blocks * C token columns, S
cache columns, V vocabulary. Every row keeps its own block start, so a slow row never holds the others; positions are
columns less the row's padding. Per step, a row's current block is forwarded against the frozen cache and tokens are
accepted:

    prompt | committed | current     M mask
    a b c d| e f g h   | M M M M       step 1: accept 1
    a b c d| e f g h   | i M M M       step 2: accept 3, block full -> pending, next block starts
    a b c d| e f g h   | i j k l | M M M M      step 3 forwards [pending | current] in one pass: the commit rides along

The first denoising forward of a row rides in the prefill, as in AR decoding the first token does. `commit="fused"`
writes a finished block's clean K/V in the first denoising forward of the next block (block-causal over the two, hence
exact: the same K/V as a forward of its own); `"separate"` spends that forward of its own.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from edlm_jax.attention import BlockCausal, Pattern, attend, attend_masked
from edlm_jax.decoding.acceptance import accept, propose
from edlm_jax.models.cache import KVCache, forward_unrolled


@dataclass(frozen=True)
class BlockSettings:
    """What a compiled program depends on; thresholds, temperature, seeds and the length limit are arguments of it."""

    block_length: int
    num_blocks: int
    mask_id: int
    eos_id: int | None
    shifted: bool
    sample: bool
    fused_commit: bool
    prefill: Pattern


@dataclass(frozen=True)
class PromptThenBlock(Pattern):
    """A prompt of `length` columns that attends to itself by `prefill`, then one block that sees all of both."""

    length: int
    prefill: Pattern

    def allowed(self, q, k):
        """The block sees everything; the prompt never sees the block."""
        return (q >= self.length) | ((k < self.length) & self.prefill.allowed(q, k))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlockState:
    """The carry of the loop."""

    tokens_BX: jax.Array
    accepted_at_BX: jax.Array  # the row's denoising forward in which a token was accepted, from 1
    cache: KVCache
    start_B: jax.Array  # first column of the current block
    pending_B: jax.Array  # the block before it is full but not yet in the cache
    done_B: jax.Array
    denoise_B: jax.Array
    commit_B: jax.Array
    before_BV: jax.Array  # logits of the column before the block: shifted alignment reads its first token there


@partial(jax.jit, static_argnames=("graphdef", "settings"))
def decode_blocks(
    graphdef, state, layers, prompts_BP, pad_B, seeds_B, limit, threshold, at_least, temperature, settings
):
    """Prefills, then decodes until every row is done; returns the final `BlockState`.

    `pad_B` counts the padding columns before each prompt; `limit` is the most new tokens of a row.
    """
    model = nnx.merge(graphdef, state)
    keys_B = jax.vmap(jax.random.key)(seeds_B)
    rule = partial(accept, threshold=threshold, at_least=at_least)
    program = _Program(model, layers, settings, pad_B, keys_B, prompts_BP.shape[1], limit, rule, temperature)
    return jax.lax.while_loop(lambda s: ~s.done_B.all(), program.step, program.prefill(prompts_BP))


class _Program:
    """The traced functions of one decoding program around their shared arrays."""

    def __init__(self, model, layers, settings, pad_B, keys_B, P, limit, rule, temperature):
        self.model, self.layers, self.settings, self.rule, self.temperature = model, layers, settings, rule, temperature
        self.pad_B, self.keys_B, self.P, self.limit = pad_B, keys_B, P, limit
        self.S = P + (settings.num_blocks - 1) * settings.block_length  # the last block is never committed

    def prefill(self, prompts_BP) -> BlockState:
        """The prompt into the cache, and the first denoising step: one forward over [prompt | first block]."""
        B, P = prompts_BP.shape
        c, C = self.settings, self.settings.block_length
        masks = jnp.full((B, c.num_blocks * C), c.mask_id, jnp.int32)
        tokens_BX = jnp.concatenate([prompts_BP, masks], axis=1)
        columns_T = jnp.arange(P + C)[None]
        segments_BT = (columns_T >= self.pad_B[:, None]).astype(jnp.int32)
        attention = lambda _, q, k, v: attend(  # noqa: E731
            q, k, v, pattern=PromptThenBlock(P, c.prefill), q_segments_BT=segments_BT, k_segments_BS=segments_BT
        )
        positions_BT = jnp.maximum(columns_T - self.pad_B[:, None], 0)
        x_BTD, kept = forward_unrolled(self.model, self.layers, tokens_BX[:, : P + C], positions_BT, attention)
        zeros_B = jnp.zeros(B, jnp.int32)
        state = BlockState(
            tokens_BX=tokens_BX,
            accepted_at_BX=jnp.zeros(tokens_BX.shape, jnp.int32),
            cache=KVCache.of([(k[:, :P], v[:, :P]) for k, v in kept], self.S),
            start_B=zeros_B + P,
            pending_B=zeros_B > 0,
            done_B=zeros_B > 0,
            denoise_B=zeros_B,
            commit_B=zeros_B,
            before_BV=self._before(x_BTD[:, P - 1 : P]),
        )
        return self._accept(state, self.model.logits(x_BTD[:, P:]))

    def step(self, s: BlockState) -> BlockState:
        """Commits what is pending, denoises every row's current block, accepts, moves on rows whose block is full."""
        c, C = self.settings, self.settings.block_length
        if c.fused_commit:
            x_BTD, new = jax.lax.cond(s.pending_B.any(), self._denoise_and_commit, self._denoise, s)
        else:
            x_BTD, new = jax.lax.cond(s.pending_B.any(), self._commit, self._nothing, s)
        cache = s.cache.write(new, s.start_B - C, s.pending_B) if self.S > self.P else s.cache
        before_BV = s.before_BV
        if c.shifted:
            before_BV = jnp.where(s.pending_B[:, None], self._before(x_BTD[:, :1]), before_BV)
        committed_B = s.pending_B
        s = _replace(s, cache=cache, pending_B=s.pending_B & False, before_BV=before_BV)
        if not c.fused_commit:
            s = _replace(s, commit_B=s.commit_B + committed_B)
            x_BTD, _ = self._denoise(s)
        return self._accept(s, self.model.logits(x_BTD[:, 1:]))

    def _accept(self, s: BlockState, logits_BCV) -> BlockState:
        c, C = self.settings, self.settings.block_length
        if c.shifted:
            logits_BCV = jnp.concatenate([s.before_BV[:, None], logits_BCV[:, :-1]], axis=1)
        denoise_B = s.denoise_B + ~s.done_B
        keys_B = jax.vmap(jax.random.fold_in)(self.keys_B, denoise_B) if c.sample else None
        proposed_BC, confidence_BC = propose(logits_BCV, keys_B, self.temperature, banned_id=c.mask_id)
        block_BC = _window(s.tokens_BX, s.start_B, C)
        accepted_BC = self.rule(confidence_BC, block_BC == c.mask_id) & ~s.done_B[:, None]
        block_BC = jnp.where(accepted_BC, proposed_BC, block_BC)
        at_BC = jnp.where(accepted_BC, denoise_B[:, None], _window(s.accepted_at_BX, s.start_B, C))
        full_B, finished_B = self._progress(block_BC, s.start_B)
        moves_B = full_B & ~finished_B & ~s.done_B
        return _replace(
            s,
            tokens_BX=_put_window(s.tokens_BX, block_BC, s.start_B),
            accepted_at_BX=_put_window(s.accepted_at_BX, at_BC, s.start_B),
            start_B=s.start_B + jnp.where(moves_B, C, 0),
            pending_B=moves_B,
            done_B=s.done_B | finished_B,
            denoise_B=denoise_B,
        )

    def _progress(self, block_BC, start_B):
        """(full_B, finished_B): a row ends at an EOS, or at its limit, with no mask before it."""
        c, C = self.settings, self.settings.block_length
        masked_BC = block_BC == c.mask_id
        settled_BC = jnp.cumsum(masked_BC, axis=1) == 0
        last_BC = start_B[:, None] + jnp.arange(C)[None] == self.P + self.limit - 1
        ends_BC = last_BC if c.eos_id is None else last_BC | (block_BC == c.eos_id)
        return ~masked_BC.any(axis=1), (settled_BC & ends_BC).any(axis=1)

    def _denoise(self, s: BlockState):
        """The current block alone against the cache, free inside itself. Hidden states of [column before | block]."""
        C = self.settings.block_length
        own_BTT = jnp.ones((1, C, C), bool)
        x_BCD, kept = self._forward(s, s.start_B, C, s.start_B, own_BTT)
        return _lead(x_BCD), kept  # `kept` is written only where something is pending: nowhere

    def _denoise_and_commit(self, s: BlockState):
        """[pending block | current block], block-causal. Rows with nothing pending read the cache as before."""
        C = self.settings.block_length
        pending_B11 = s.pending_B[:, None, None]
        block_causal = BlockCausal(C).dense(2 * C, 2 * C)
        not_pending = np.eye(2 * C, dtype=bool) | (np.arange(2 * C) >= C)  # its columns are in the cache: seen there
        own_BTT = jnp.where(pending_B11, block_causal[None], (block_causal & not_pending)[None])
        visible_B = s.start_B - jnp.where(s.pending_B, C, 0)
        x_BTD, kept = self._forward(s, s.start_B - C, 2 * C, visible_B, own_BTT)
        return x_BTD[:, C - 1 :], [(k[:, :C], v[:, :C]) for k, v in kept]

    def _commit(self, s: BlockState):
        """The pending block alone: the forward of its own that fusing saves."""
        C = self.settings.block_length
        x_BCD, kept = self._forward(s, s.start_B - C, C, s.start_B - C, jnp.ones((1, C, C), bool))
        return x_BCD[:, -1:], kept

    def _nothing(self, s: BlockState):
        C, spec = self.settings.block_length, self.model.spec
        B, dtype = s.start_B.shape[0], self.model.dtype
        zeros = jnp.zeros((B, C, spec.num_kv_heads, spec.head_dim), dtype)
        return jnp.zeros((B, 1, spec.width), dtype), [(zeros, zeros)] * spec.num_layers

    def _forward(self, s: BlockState, first_B, T, visible_B, own_BTT):
        """T columns from first_B on, against the cache columns before `visible_B` and each other by `own_BTT`."""
        tokens_BT = _window(s.tokens_BX, first_B, T)
        positions_BT = jnp.maximum(first_B[:, None] + jnp.arange(T)[None] - self.pad_B[:, None], 0)
        columns_S = jnp.arange(self.S)[None]
        cached_B1S = ((columns_S >= self.pad_B[:, None]) & (columns_S < visible_B[:, None]))[:, None]

        def attention(index, q, k, v):
            return attend_masked(q, [(s.cache.k_BSKH[index], s.cache.v_BSKH[index], cached_B1S), (k, v, own_BTT)])

        return forward_unrolled(self.model, self.layers, tokens_BT, positions_BT, attention)

    def _before(self, x_B1D):
        """Logits of the column before a block; nothing where the alignment does not read them."""
        return self.model.logits(x_B1D)[:, 0] if self.settings.shifted else jnp.zeros((x_B1D.shape[0], 0))


def _lead(x_BCD):
    """Room for the column before the block, which this forward did not see."""
    return jnp.concatenate([jnp.zeros_like(x_BCD[:, :1]), x_BCD], axis=1)


def _replace(state: BlockState, **changes) -> BlockState:
    return BlockState(**{**vars(state), **changes})


def _window(x_BX, start_B, length):
    return jax.vmap(lambda row, start: jax.lax.dynamic_slice_in_dim(row, start, length))(x_BX, start_B)


def _put_window(x_BX, new_BT, start_B):
    put = lambda row, new, start: jax.lax.dynamic_update_slice_in_dim(row, new, start, 0)  # noqa: E731
    return jax.vmap(put)(x_BX, new_BT, start_B)
