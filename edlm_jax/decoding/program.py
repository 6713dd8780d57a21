"""What all decoding programs share: what they are told, what their loops carry, and their ways through the model.

Shapes: B rows, P prompt columns (left-padded), C block length, X token columns, S cache columns, T columns of a
forward, R of which are read, V vocabulary, W = ceil(V / 32). Every row keeps its own column, so a slow row never holds
the others; positions are columns less the row's padding.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from edlm_jax.attention import Bidirectional, Pattern
from edlm_jax.decoding.acceptance import Rule
from edlm_jax.decoding.ends import is_end, length_to_end
from edlm_jax.decoding.generation import Settled, on_host
from edlm_jax.decoding.logprobs import Logprobs
from edlm_jax.decoding.sampling import Draw, Proposal
from edlm_jax.decoding.windows import window
from edlm_jax.models.cache import DecodingWeights, KVCache, Rotary, forward_cached, prefill

if TYPE_CHECKING:
    from edlm_jax.decoding.modes.mode import Mode


@dataclass(frozen=True)
class Settings:
    """What a program is compiled for; a `Request`, the rule's number in it, is an argument."""

    mode: "Mode"  # its program and options, as `Mode.compiled_in` has them
    room: int  # columns for new tokens; of blocks, whole ones
    mask_id: int | None  # None: of an AR model
    shifted: bool  # does logit i predict token i + 1?
    draw: Draw

    def program(self, weights: DecodingWeights, request: "Request") -> "Program":
        """The traced functions of one decoding."""
        return self.mode.program(weights, request, self)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Request:
    """What is decoded: `pad_B` counts the padding columns before each prompt, a row ends at any token of `ends_E`, and
    `limit_B1` caps its new tokens (0: it is done from the start), from column `first_B` on: blocks counted from 0 may
    begin with the last tokens of a prompt. The ends and what follows the limit may be each row's own (requests.py).
    """

    prompts_BP: jax.Array | np.ndarray
    pad_B: jax.Array | np.ndarray
    first_block_BC: jax.Array | np.ndarray  # given tokens, then masks; without blocks one column, of nothing yet
    first_B: jax.Array | np.ndarray
    seeds_B: jax.Array | np.ndarray
    ends_E: jax.Array | np.ndarray
    limit_B1: jax.Array | np.ndarray
    rule: Rule
    temperature: float
    allowed_BW: jax.Array | np.ndarray | None = None  # int32, a bit for each id that may come next; None: all may
    logprobs_B: jax.Array | np.ndarray | None = None  # bool: which rows want their log-probabilities; None: none ever


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """The carry of the loop."""

    tokens_BX: jax.Array
    accepted_at_BX: jax.Array  # the row's denoising forward in which a token was accepted, from 1
    cache: KVCache | None
    start_B: jax.Array  # first column of the current block; without blocks, the first one that is not settled
    done_B: jax.Array
    denoise_B: jax.Array
    commit_B: jax.Array
    pending_B: jax.Array | None = None  # the block before it is full but not yet in the cache; None: without blocks
    before_BV: jax.Array | None = None  # logits of the column before the block: shifted ones of its first token
    logprobs: Logprobs | None = None
    aside: Any = None  # what the mode itself carries, a value of its own type

    def settled(self, request: Request) -> Settled:
        """What it holds: of a row that is not done, its finished blocks or settled tokens."""
        known = (self.tokens_BX, self.accepted_at_BX, self.start_B, self.done_B, self.denoise_B, self.commit_B)
        tokens_BX, at_BX, start_B, done_B, denoise_B, commit_B = on_host(known)
        first_B = np.asarray(request.first_B)
        columns = [slice(first, max(first, start)) for first, start in zip(first_B, start_B, strict=True)]
        if self.pending_B is not None:  # the block in which a row ends is its last one, and `start` stays there
            limit_B = np.asarray(request.limit_B1)[:, 0]
            ends_B1E = np.broadcast_to(request.ends_E, (len(done_B), 1, request.ends_E.shape[-1]))
            for row in np.flatnonzero(done_B):
                new = tokens_BX[row, first_B[row] : first_B[row] + limit_B[row]].tolist()
                count = length_to_end(new, ends_B1E[row, 0].tolist())
                columns[row] = slice(first_B[row], first_B[row] + count)
        return Settled(tokens_BX, at_BX, columns, denoise_B, commit_B, self.logprobs)


class Program:
    """The traced functions of one decoding around their shared arrays.

    Each kind adds those that engine.py names, and `enter(state, x_B1D)`: rows behind their prompts' last columns.
    """

    width: int  # columns of a turn's widest forward
    beyond: int  # columns behind the room for new tokens that a forward may have

    def __init__(self, weights: DecodingWeights, request: Request, settings: Settings):
        self.weights, self.request, self.settings, self.pad_B = weights, request, settings, request.pad_B
        self.mode, self.C = settings.mode, settings.mode.block_length
        self.keys_B = jax.vmap(jax.random.key)(request.seeds_B)
        self.P = request.prompts_BP.shape[1]
        self.X = self.S = self.P + settings.room + self.beyond
        self.rotary = Rotary.of(weights.spec, self.S)

    def outcome(self, s: State) -> State:
        """Without what nobody reads then."""
        return replace(s, cache=None, before_BV=None, aside=None)

    def fresh(self, tokens_BX, start_B, cache: KVCache) -> State:
        """Rows with nothing settled."""
        zeros_B, done_B = jnp.zeros_like(start_B), self.request.limit_B1[:, 0] < 1
        return State(tokens_BX, jnp.zeros_like(tokens_BX), cache, start_B, done_B, zeros_B, zeros_B)

    def prefill(self, pattern: Pattern, noise_BT=None, first: int | None = None):
        """(rows with nothing settled, x_BRD): one forward over the prompt and this noise; the prompt is kept.

        `first` is the first column that is read, and no other is computed of the last layer; None: all are.
        """
        request, P = self.request, self.P
        filler, behind = self.settings.mask_id or 0, self.X - P - request.first_block_BC.shape[1]
        tokens_BX = jnp.concatenate([request.prompts_BP, request.first_block_BC], axis=1)
        tokens_BX = jnp.pad(tokens_BX, ((0, 0), (0, behind)), constant_values=filler)
        tokens_BT = request.prompts_BP if noise_BT is None else jnp.concatenate([request.prompts_BP, noise_BT], axis=1)
        B, T = tokens_BT.shape
        columns_1T = jnp.arange(T)[None]
        segments_BT = (columns_1T >= self.pad_B[:, None]).astype(jnp.int32)
        read_mask_BRT = None
        if first is not None:
            end_R1 = jnp.where(columns_1T[0, first:, None] < P, P, T)
            read_mask_BRT = (columns_1T < end_R1)[None] & (segments_BT[:, None] > 0)
        kept = dict(keep=P, length=self.S, drafts=T - P, read_mask_BTS=read_mask_BRT)
        x_BRD, cache = prefill(self.weights, tokens_BT, self.at(columns_1T), pattern, segments_BT, **kept)
        return self.fresh(tokens_BX, jnp.full(B, P, jnp.int32), cache), x_BRD

    def piece(self, cache: KVCache, tokens_BX, end_B, new_B, length: int) -> State:
        """So many columns of prompts that end there, those from `new` on; after the last ones, rows as they begin.

        Where fewer are left, they end with the prompt, and the cache keeps what it has before `new`. They see the
        prompt by its pattern, as far as the cache holds it; both ways, all of it must be there.
        """
        pattern = self.mode.prompt_pattern
        whole = isinstance(pattern, Bidirectional)  # from 0 on, and may go beyond the end
        at_B = new_B if whole else jnp.minimum(new_B, end_B - length)
        columns_BT = at_B[:, None] + jnp.arange(length)[None]
        columns_11S = jnp.arange(cache.columns)[None, None]
        mask_BTS = pattern.allowed(columns_BT[..., None], columns_11S) & self.inside(columns_11S, end_B[:, None, None])
        read = length if whole else 1
        wanted_BT = (columns_BT >= jnp.maximum(self.pad_B, new_B)[:, None]) & (columns_BT < end_B[:, None])
        new = window(tokens_BX, at_B, length), self.at(columns_BT), at_B, mask_BTS
        x_BRD, cache = forward_cached(self.weights, cache, *new, where_BT=wanted_BT, read=read, wanted_BT=wanted_BT)
        last_B = jnp.clip(end_B - 1 - at_B, 0, read - 1)
        x_B1D = jnp.take_along_axis(x_BRD, last_B[:, None, None], axis=1)
        return self.enter(self.fresh(tokens_BX, end_B, cache), x_B1D)

    def forward_window(self, s: State, tokens_BT, start_B, seen_BTT, offset_BT=None, drafts: int = 0, wanted_BT=True):
        """(x_BTD, s): a window of T columns from start_B on, which sees what lies before it and `seen` of itself.

        Its columns are written to the cache side by side; their positions are start_B's plus `offset_BT` (default: 0,
        1, 2, ...), so that several guesses at the same tokens can lie in one window. The last `drafts` columns are
        noisy ones, on which adapters act. Columns outside `wanted_BT` are neither read nor seen.
        """
        B, T = tokens_BT.shape
        offset_BT = jnp.broadcast_to(np.arange(T) if offset_BT is None else offset_BT, (B, T))
        columns_11S = jnp.arange(s.cache.columns)[None, None]
        before_BTS = jnp.broadcast_to(self.inside(columns_11S, start_B[:, None, None]), (B, T, s.cache.columns))
        put_columns = jax.vmap(lambda old_TS, new_TT, at: jax.lax.dynamic_update_slice_in_dim(old_TS, new_TT, at, 1))
        mask_BTS = put_columns(before_BTS, jnp.broadcast_to(seen_BTT, (B, T, T)), start_B)
        new = tokens_BT, self.at(start_B[:, None] + offset_BT), start_B, mask_BTS
        wanted_BT = ~s.done_B[:, None] & wanted_BT
        x_BTD, cache = forward_cached(self.weights, s.cache, *new, drafts=drafts, wanted_BT=wanted_BT)
        return x_BTD, replace(s, cache=cache)

    def at(self, columns_BT) -> Rotary:
        """Where columns stand: positions begin behind the padding."""
        return self.rotary.at(jnp.maximum(columns_BT - self.pad_B[:, None], 0))

    def inside(self, columns_11S, end_B11):
        """bool[B, T, S]: the columns from the padding on, before the end."""
        return (columns_11S >= self.pad_B[:, None, None]) & (columns_11S < end_B11)

    def propose(self, s: State, logits_BTV) -> tuple[Proposal, State]:
        """(the `Proposal` of a forward, the state with this forward counted)."""
        s, how = replace(s, denoise_B=s.denoise_B + ~s.done_B), dict(banned_id=self.settings.mask_id)
        return self.settings.draw.propose(logits_BTV, self.keys_B, s.denoise_B, self.request.temperature, **how), s

    def index(self, start_B, T: int):
        """int32[B, T]: the numbers of so many columns among the row's new tokens, from 0; what was given has less."""
        return start_B[:, None] + jnp.arange(T)[None] - self.request.first_B[:, None]

    def ends(self, tokens_BT, start_B):
        """bool[B, T]: where a row ends, once no mask stands before; what was given ends nothing and does not count."""
        index_BT = self.index(start_B, tokens_BT.shape[1])
        return (index_BT == self.request.limit_B1 - 1) | is_end(tokens_BT, self.request.ends_E) & (index_BT >= 0)
