"""Block diffusion decoding as one compiled loop (arXiv 2512.14067, section 3.4).

Shapes: B rows, P prompt columns (left-padded, a multiple of C), C block length, X = P + blocks * C token columns, S
cache columns, T columns of a forward, R of which are read, F columns that a step denoises, V vocabulary. Every row
keeps its own block start, so a slow row never holds the others; positions are columns less the row's padding. Per step,
a row's current block is forwarded against the frozen cache and tokens are accepted:

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

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from edlm_jax.attention.pattern import Pattern, PromptThenBlock
from edlm_jax.decoding.acceptance import Rule
from edlm_jax.decoding.ends import is_end, length_to_end
from edlm_jax.decoding.generation import Settled, on_host
from edlm_jax.decoding.sampling import Draw, best_token
from edlm_jax.decoding.windows import forward_prompt, put_whole, window
from edlm_jax.models.cache import DecodingWeights, KVCache, Rotary, forward_cached, prefill

if TYPE_CHECKING:
    from edlm_jax.decoding.modes.block_mode import BlockMode


@dataclass(frozen=True)
class BlockSettings:
    """What a program is compiled for, beside the kind of rule; a `Request`, the rule's number in it, is an argument."""

    kind: type["BlockProgram"]  # the traced functions
    mode: "BlockMode"  # its options, as `Mode.compiled_in` has them
    block_length: int
    num_blocks: int
    mask_id: int
    shifted: bool
    draw: Draw
    prefill: Pattern

    def is_noise(self, tokens: jax.Array) -> jax.Array:
        """Which of these are still to be decoded."""
        return tokens == self.mask_id

    def spanning(self, columns: int) -> Self:
        """For rows of so many columns, whose prompts are prefilled in pieces."""
        return replace(self, num_blocks=columns // self.block_length)

    def program(self, weights: DecodingWeights, request: "Request") -> "BlockProgram":
        """The traced functions of one decoding."""
        return self.kind(weights, request, self)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlockState:
    """The carry of the loop."""

    tokens_BX: jax.Array
    accepted_at_BX: jax.Array  # the row's denoising forward in which a token was accepted, from 1
    cache: KVCache | None
    start_B: jax.Array  # first column of the current block
    pending_B: jax.Array  # the block before it is full but not yet in the cache
    done_B: jax.Array
    denoise_B: jax.Array
    commit_B: jax.Array
    before_BV: jax.Array | None  # logits of the column before the block: shifted alignment reads its first token there
    aside: Any = None  # what the mode itself carries, a value of its own type


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Request:
    """What is decoded: `pad_B` counts the padding columns before each prompt, a row ends at any token of `ends_E`, and
    `limit_B1` caps its new tokens (0: it is done from the start), from column `first_B` on: blocks counted from 0 may
    begin with the last tokens of a prompt. The ends and the last two fields may be each row's own (requests.py).
    """

    prompts_BP: jax.Array | np.ndarray
    pad_B: jax.Array | np.ndarray
    first_block_BC: jax.Array | np.ndarray  # given tokens, then masks
    first_B: jax.Array | np.ndarray
    seeds_B: jax.Array | np.ndarray
    ends_E: jax.Array | np.ndarray
    limit_B1: jax.Array | np.ndarray
    rule: Rule
    temperature: float

    def settled(self, state: BlockState) -> Settled:
        """What a state holds: of a row that is not done, its finished blocks."""
        final = (state.tokens_BX, state.accepted_at_BX, state.start_B, state.done_B, state.denoise_B, state.commit_B)
        tokens_BX, accepted_at_BX, start_B, done_B, denoise_B, commit_B = on_host(final)
        limit_B, columns = np.asarray(self.limit_B1)[:, 0], []
        ends_B1E = np.broadcast_to(self.ends_E, (len(done_B), 1, self.ends_E.shape[-1]))
        for row, first in enumerate(self.first_B):
            count = max(start_B[row] - first, 0)
            if done_B[row]:
                count = length_to_end(tokens_BX[row, first : first + limit_B[row]].tolist(), ends_B1E[row, 0].tolist())
            columns.append(slice(first, first + count))
        return Settled(tokens_BX, accepted_at_BX, columns, denoise_B, commit_B)


class BlockProgram:
    """The traced functions of one decoding program around their shared arrays."""

    def __init__(self, weights: DecodingWeights, request: Request, settings: BlockSettings):
        self.weights, self.request, self.settings, self.pad_B = weights, request, settings, request.pad_B
        self.mode, self.C = settings.mode, settings.block_length
        self.keys_B = jax.vmap(jax.random.key)(request.seeds_B)
        self.P = request.prompts_BP.shape[1]
        self.F = self.mode.blocks * self.C  # the current block and, in some modes, those in flight behind it
        self.X = self.S = self.P + (settings.num_blocks - 1) * self.C + self.F  # with those in flight beside the last
        self.fused = self.mode.commit == "fused"  # does a commit ride in the next block's first forward?
        self.first_token = self.mode.commit == "first_token"  # does a commit, or the prefill, give the next block's?
        self.width = self.F + self.C * self.fused  # of a turn's widest forward
        self.rotary = Rotary.of(weights.spec, self.S)

    def advance(self, s: BlockState) -> BlockState:
        """Until some row has finished a block, or all are done."""
        return self.turn(s)

    def outcome(self, s: BlockState) -> BlockState:
        """Without the cache."""
        return replace(s, cache=None, before_BV=None, aside=None)

    def turn(self, s: BlockState) -> BlockState:
        """Commits what is pending, then denoises until something is.

        Two loops that take turns, instead of a branch in one: the cache is then updated in place throughout. The first
        runs at most once, for a fused commit may finish the next block, and whoever watches wants to see that.
        """
        commit = lambda carry: (carry[0] & False, self.commit(carry[1]))  # noqa: E731
        _, s = jax.lax.while_loop(lambda carry: carry[0], commit, (s.pending_B.any(), s))
        return self.go_on(s)

    def go_on(self, s: BlockState) -> BlockState:
        """Denoises until a block is pending."""
        return jax.lax.while_loop(self.goes_on, self.denoise, s)

    def goes_on(self, s: BlockState) -> jax.Array:
        """Is there a row to denoise, and nothing to commit?"""
        return ~s.pending_B.any() & ~s.done_B.all()

    def begin(self) -> BlockState:
        """The prompt into the cache, and the first denoising step: one forward over [prompt | first block].

        Where a block's first token is taken before, the forward is over the prompt alone.
        """
        prompts_BP, settings, C = self.request.prompts_BP, self.settings, self.C
        B, P = prompts_BP.shape
        T = P if self.first_token else P + C
        masks = jnp.full((B, self.X - P - C), settings.mask_id, jnp.int32)
        tokens_BX = jnp.concatenate([prompts_BP, self.request.first_block_BC, masks], axis=1)
        columns_T = jnp.arange(T)[None]
        segments_BT = (columns_T >= self.pad_B[:, None]).astype(jnp.int32)
        rotary_BT = self.rotary.at(jnp.maximum(columns_T - self.pad_B[:, None], 0))
        # Read are the block and, shifted, the column before it, which sees the whole prompt under every prefill.
        end_R1 = jnp.where(columns_T[0, P - settings.shifted :, None] < P, P, T)
        read_mask_BRT = (columns_T[:, None] < end_R1[None]) & (segments_BT[:, None] > 0)
        kept = dict(keep=P, length=self.S, read_mask_BTS=read_mask_BRT)
        pattern = PromptThenBlock(P, settings.prefill)
        x_BRD, cache = prefill(self.weights, tokens_BX[:, :T], rotary_BT, pattern, segments_BT, **kept)
        logits_BCV = self.weights.logits(x_BRD[:, :C])
        state = self.fresh(tokens_BX, jnp.full(B, P, jnp.int32), cache, logits_BCV[:, 0])
        return self.lead(state) if self.first_token else self.accept(state, logits_BCV)

    def piece(self, cache: KVCache, tokens_BX, start_B, new_B, length: int) -> BlockState:
        """So many columns of rows' prompts, from `new` on; after the last, rows without a denoising forward yet."""
        where = tokens_BX, self.rotary, self.settings.prefill, self.pad_B, start_B, new_B, length
        x_B1D, cache = forward_prompt(self.weights, cache, *where)
        state = self.fresh(tokens_BX, start_B, cache, self.weights.logits(x_B1D)[:, 0])
        return self.lead(state) if self.first_token else state

    def fresh(self, tokens_BX, start_B, cache: KVCache, before_BV) -> BlockState:
        """Rows with nothing settled."""
        zeros_B = jnp.zeros(len(start_B), jnp.int32)
        at_BX, before_BV = jnp.zeros_like(tokens_BX), before_BV if self.settings.shifted else before_BV[:, :0]
        none_B, done_B = zeros_B > 0, self.request.limit_B1[:, 0] < 1
        return self.start(BlockState(tokens_BX, at_BX, cache, start_B, none_B, done_B, zeros_B, zeros_B, before_BV))

    def denoise(self, s: BlockState) -> BlockState:
        """One step of every row's current block, nothing being pending."""
        x_BFD, s = self.forward(s, s.start_B, self.F)
        return self.accept(s, self.read(s, x_BFD))

    def commit(self, s: BlockState) -> BlockState:
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

    def read(self, s: BlockState, x_BFD):
        """The logits of the tokens of a step's columns."""
        if not self.settings.shifted:
            return self.weights.logits(x_BFD)
        return jnp.concatenate([s.before_BV[:, None], self.weights.logits(x_BFD[:, :-1])], axis=1)

    def start(self, s: BlockState) -> BlockState:
        """A state before its first denoising step; a mode may carry more `aside`."""
        return s

    def inputs(self, s: BlockState, first_B, T):
        """What T columns from first_B on put into the model: token ids, or embeddings [B, T, D]."""
        return window(s.tokens_BX, first_B, T)

    def open(self, block_BC):
        """bool[B, C]: the masks that the rule may choose from."""
        return self.settings.is_noise(block_BC)

    def written(self, s: BlockState, first_B, T, where_B):
        """Which of T columns a forward writes to the cache; None is all."""
        return None if where_B is None else where_B[:, None] | (jnp.arange(T) >= self.C)[None]

    def wanted(self, s: BlockState, block_BT, where_B):
        """Which columns of a forward anybody reads or sees, by the block they are of, counted from the current one."""
        return ~s.done_B[:, None] & (True if where_B is None else where_B[:, None] | (block_BT >= 0))

    def accept(self, s: BlockState, logits_BCV) -> BlockState:
        """Keeps what the rule accepts in every row's current block."""
        proposal, s = self.propose(s, logits_BCV)
        masked_BC = self.open(window(s.tokens_BX, s.start_B, self.C))
        return self.keep(s, proposal.tokens_BC, self.request.rule(proposal, masked_BC))

    def propose(self, s: BlockState, logits_BFV):
        """(the `Proposal` of a forward, the state with this forward counted)."""
        s, how = replace(s, denoise_B=s.denoise_B + ~s.done_B), dict(banned_id=self.settings.mask_id)
        return self.settings.draw.propose(logits_BFV, self.keys_B, s.denoise_B, self.request.temperature, **how), s

    def lead(self, s: BlockState) -> BlockState:
        """Takes the first token of every block that has none yet from the logits of the column before it."""
        best_B = best_token(s.before_BV.at[:, self.settings.mask_id].set(-jnp.inf))
        masked_BC = self.settings.is_noise(window(s.tokens_BX, s.start_B, self.C))
        return self.keep(s, best_B[:, None], masked_BC & (jnp.arange(self.C) == 0)[None])

    def keep(self, s: BlockState, tokens_BT, accepted_BT, over_B=True) -> BlockState:
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
        masked_BT = self.settings.is_noise(block_BT)
        settled_BT = jnp.cumsum(masked_BT, axis=1) == 0
        full_B = ~masked_BT[:, : self.C].any(axis=1)
        return full_B, (settled_BT & self.ends(block_BT, start_B)).any(axis=1)

    def ends(self, block_BC, start_B):
        """bool[B, C]: where a row ends, once no mask stands before; what was given ends nothing and does not count."""
        index_BC = self.index(start_B, block_BC.shape[1])
        return (index_BC == self.request.limit_B1 - 1) | is_end(block_BC, self.request.ends_E) & (index_BC >= 0)

    def index(self, start_B, T: int):
        """int32[B, T]: the numbers of so many columns among the row's new tokens, from 0; what was given has less."""
        return start_B[:, None] + jnp.arange(T)[None] - self.request.first_B[:, None]

    def forward(self, s: BlockState, first_B, T, where_B=None, read=None):
        """T columns from first_B on, block by block, against the cache they are written to.

        Rows outside `where_B` neither compute nor write their first block.
        """
        C, columns_T, columns_11S = self.C, jnp.arange(T), jnp.arange(s.cache.columns)[None, None]
        inputs_BT = self.inputs(s, first_B, T)
        rotary_BT = self.rotary.at(jnp.maximum(first_B[:, None] + columns_T[None] - self.pad_B[:, None], 0))
        block_BT = ((first_B - s.start_B)[:, None] + columns_T[None]) // C  # counted from the current one
        block_end_BT1 = (s.start_B[:, None] + (block_BT + 1) * C)[..., None]
        mask_BTS = (columns_11S >= self.pad_B[:, None, None]) & (columns_11S < block_end_BT1)
        how = dict(where_BT=self.written(s, first_B, T, where_B), wanted_BT=self.wanted(s, block_BT, where_B))
        x_BTD, cache = forward_cached(self.weights, s.cache, inputs_BT, rotary_BT, first_B, mask_BTS, read=read, **how)
        return x_BTD, replace(s, cache=cache)
