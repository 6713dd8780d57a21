"""Block diffusion decoding as one compiled loop (arXiv 2512.14067, section 3.4).

Shapes as in program.py, with P a multiple of C, X = P + blocks * C token columns and F columns that a step denoises.
Per step, a row's current block is forwarded against the frozen cache and tokens are accepted:

    prompt | committed | current     M mask
    a b c d| e f g h   | M M M M       step 1: accept 1
    a b c d| e f g h   | i M M M       step 2: accept 3, block full -> pending, next block starts
    a b c d| e f g h   | i j k l | M M M M      step 3 forwards [pending | current] in one pass: the commit rides along

The first denoising forward of a row rides in the prefill, as in AR decoding the first token does. `commit="fused"`
writes a finished block's clean K/V in the first denoising forward of the next block (block-causal over the two, hence
exact: the same K/V as a forward of its own); `"separate"` spends that forward of its own. `"first_token"` is separate,
the prefill, too, and takes the next block's first token from it, the most likely one however sure (Fast-dLLM v2; it
needs shifted logits). The block's first denoising forward then knows that token.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from edlm_jax.attention.pattern import PromptThenBlock
from edlm_jax.decoding.program import Program, State
from edlm_jax.decoding.sampling import best_token
from edlm_jax.decoding.windows import put_whole, window
from edlm_jax.models.cache import KVCache, forward_cached

if TYPE_CHECKING:
    from edlm_jax.decoding.modes.mode import BlockMode


class BlockProgram(Program):
    """Commits and denoises blocks."""

    mode: "BlockMode"

    def __init__(self, weights, request, settings):
        super().__init__(weights, request, settings)
        self.F = self.C + self.beyond  # the current block and, in some modes, those in flight behind it
        self.fused = self.mode.commit == "fused"  # does a commit ride in the next block's first forward?
        self.first_token = self.mode.commit == "first_token"  # does a commit, or the prefill, give the next block's?
        self.width = self.F + self.C * self.fused

    @property
    def beyond(self) -> int:
        """Columns of the blocks in flight beside the last one."""
        return (self.mode.blocks - 1) * self.C

    def advance(self, s: State) -> State:
        """Until some row has finished a block, or all are done."""
        return self.turn(s)

    def turn(self, s: State) -> State:
        """Commits what is pending, then denoises until something is.

        Two loops that take turns, instead of a branch in one: the cache is then updated in place throughout. The first
        runs at most once, for a fused commit may finish the next block, and whoever watches wants to see that.
        """
        commit = lambda carry: (carry[0] & False, self.commit(carry[1]))  # noqa: E731
        _, s = jax.lax.while_loop(lambda carry: carry[0], commit, (s.pending_B.any(), s))
        return self.go_on(s)

    def go_on(self, s: State) -> State:
        """Denoises until a block is pending."""
        return jax.lax.while_loop(self.goes_on, self.denoise, s)

    def goes_on(self, s: State) -> jax.Array:
        """Is there a row to denoise, and nothing to commit?"""
        return ~s.pending_B.any() & ~s.done_B.all()

    def begin(self) -> State:
        """The prompt into the cache, and the first denoising step: one forward over [prompt | first block].

        Where a block's first token is taken before, the forward is over the prompt alone.
        """
        shifted, pattern = self.settings.shifted, PromptThenBlock(self.P, self.mode.prompt_pattern)
        noise_BC = None if self.first_token else self.request.first_block_BC
        # Read are the block and, shifted, the column before it, which sees the whole prompt under every pattern.
        s, x_BRD = self.prefill(pattern, noise_BC, first=self.P - shifted)
        if self.first_token:
            return self.enter(s, x_BRD)
        logits_BCV = self.weights.logits(x_BRD[:, : self.C])
        return self.accept(replace(s, before_BV=logits_BCV[:, 0] if shifted else None), logits_BCV)

    def enter(self, s: State, x_B1D) -> State:
        """Without a denoising forward yet."""
        if self.settings.shifted:
            s = replace(s, before_BV=self.weights.logits(x_B1D)[:, 0])
        return self.lead(s) if self.first_token else s

    def fresh(self, tokens_BX, start_B, cache: KVCache) -> State:
        s = super().fresh(tokens_BX, start_B, cache)
        return self.start(replace(s, pending_B=jnp.zeros_like(s.done_B)))

    def denoise(self, s: State) -> State:
        """One step of every row's current block, nothing being pending."""
        x_BFD, s = self.forward(s, s.start_B, self.F)
        return self.accept(s, self.read(s, x_BFD))

    def commit(self, s: State) -> State:
        """Writes the clean K/V of pending blocks; fused, the same forward is a step of every row's current block."""
        shifted = self.settings.shifted
        # Read are the columns of the step and, shifted, the last one before them.
        T, read = (self.C + self.F, self.F + shifted) if self.fused else (self.C, 1)
        x_BRD, s = self.forward(s, s.start_B - self.C, T, where_B=s.pending_B, read=read)
        if shifted:
            logits_B1V = self.weights.logits(x_BRD[:, :1])
            s = replace(s, before_BV=jnp.where(s.pending_B[:, None], logits_B1V[:, 0], s.before_BV))
        if self.fused:
            return self.accept(s, self.read(s, x_BRD[:, shifted:]))
        s = replace(s, commit_B=s.commit_B + s.pending_B, pending_B=s.pending_B & False)
        return self.lead(s) if self.first_token else s

    def read(self, s: State, x_BFD):
        """The logits of the tokens of a step's columns."""
        if not self.settings.shifted:
            return self.weights.logits(x_BFD)
        return jnp.concatenate([s.before_BV[:, None], self.weights.logits(x_BFD[:, :-1])], axis=1)

    def start(self, s: State) -> State:
        """A state before its first denoising step; a mode may carry more `aside`."""
        return s

    def inputs(self, s: State, first_B, T):
        """What T columns from first_B on put into the model: token ids, or embeddings [B, T, D]."""
        return window(s.tokens_BX, first_B, T)

    def is_noise(self, tokens_BT):
        """bool[B, T]: which of these are still to be decoded."""
        return tokens_BT == self.settings.mask_id

    def masked(self, s: State):
        """bool[B, C]: the masks of every row's current block."""
        return self.is_noise(window(s.tokens_BX, s.start_B, self.C))

    def open(self, block_BC):
        """bool[B, C]: the masks that the rule may choose from."""
        return self.is_noise(block_BC)

    def written(self, s: State, first_B, T, where_B):
        """Which of T columns a forward writes to the cache; None is all."""
        return None if where_B is None else where_B[:, None] | (jnp.arange(T) >= self.C)[None]

    def wanted(self, s: State, block_BT, where_B):
        """Which columns of a forward anybody reads or sees, by the block they are of, counted from the current one."""
        return ~s.done_B[:, None] & (True if where_B is None else where_B[:, None] | (block_BT >= 0))

    def accept(self, s: State, logits_BCV) -> State:
        """Keeps what the rule accepts in every row's current block."""
        proposal, s = self.propose(s, logits_BCV)
        masked_BC = self.open(window(s.tokens_BX, s.start_B, self.C))
        return self.keep(s, proposal.tokens_BC, self.request.rule(proposal, masked_BC))

    def lead(self, s: State) -> State:
        """Takes the first token of every block that has none yet from the logits of the column before it."""
        best_B = best_token(s.before_BV.at[:, self.settings.mask_id].set(-jnp.inf))
        return self.keep(s, best_B[:, None], self.masked(s) & (jnp.arange(self.C) == 0)[None])

    def keep(self, s: State, tokens_BT, accepted_BT, over_B=True) -> State:
        """Puts accepted tokens into every row's current block; full and over, it becomes pending, or ends its row."""
        T = accepted_BT.shape[1]
        accepted_BT = accepted_BT & ~s.done_B[:, None]
        block_BT = jnp.where(accepted_BT, tokens_BT, window(s.tokens_BX, s.start_B, T))
        at_BT = jnp.where(accepted_BT, s.denoise_B[:, None], window(s.accepted_at_BX, s.start_B, T))
        full_B, finished_B = (progress_B & over_B for progress_B in self.progress(block_BT, s.start_B))
        moves_B = full_B & ~finished_B & ~s.done_B
        return replace(
            s,
            tokens_BX=put_whole(s.tokens_BX, block_BT, s.start_B),
            accepted_at_BX=put_whole(s.accepted_at_BX, at_BT, s.start_B),
            start_B=s.start_B + jnp.where(moves_B, self.C, 0),
            pending_B=moves_B,
            done_B=s.done_B | finished_B,
        )

    def progress(self, block_BT, start_B):
        """(full_B, finished_B): a row ends at one of its ends, or at its limit, with no mask before it."""
        masked_BT = self.is_noise(block_BT)
        settled_BT = jnp.cumsum(masked_BT, axis=1) == 0
        full_B = ~masked_BT[:, : self.C].any(axis=1)
        return full_B, (settled_BT & self.ends(block_BT, start_B)).any(axis=1)

    def forward(self, s: State, first_B, T, where_B=None, read=None):
        """T columns from first_B on, block by block, against the cache they are written to.

        Rows outside `where_B` neither compute nor write their first block.
        """
        C, columns_T, columns_11S = self.C, jnp.arange(T), jnp.arange(s.cache.columns)[None, None]
        inputs_BT = self.inputs(s, first_B, T)
        block_BT = ((first_B - s.start_B)[:, None] + columns_T[None]) // C  # counted from the current one
        block_end_BT1 = (s.start_B[:, None] + (block_BT + 1) * C)[..., None]
        new = inputs_BT, self.at(first_B[:, None] + columns_T[None]), first_B, self.inside(columns_11S, block_end_BT1)
        how = dict(where_BT=self.written(s, first_B, T, where_B), wanted_BT=self.wanted(s, block_BT, where_B))
        x_BTD, cache = forward_cached(self.weights, s.cache, *new, read=read, **how)
        return x_BTD, replace(s, cache=cache)
