"""What the modes that settle tokens from left to right share: causal rows that grow, and the loops around a cycle.

Shapes: B rows, P prompt columns (left-padded), T new columns of a forward, C block length, X token columns, S cache
columns, V vocabulary, W = ceil(V / 32). The cache is causal: it holds what AR decoding would hold, so verified tokens
are AR's. Every row keeps its own column, so a slow row never holds the others.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from edlm_jax.attention import Causal, Pattern
from edlm_jax.decoding.acceptance import Threshold
from edlm_jax.decoding.ends import is_end
from edlm_jax.decoding.generation import Settled, on_host
from edlm_jax.decoding.logprobs import Logprobs
from edlm_jax.decoding.sampling import Draw
from edlm_jax.decoding.windows import forward_prompt, forward_window, put
from edlm_jax.models.cache import DecodingWeights, KVCache, Rotary, prefill

if TYPE_CHECKING:
    from edlm_jax.decoding.modes.mode import RowMode

_LOOK = 8  # cycles between two looks of someone who watches; a choice: few enough to stop soon, enough to stay compiled


@dataclass(frozen=True)
class RowSettings:
    """What a compiled program depends on."""

    kind: type["LeftToRight"]  # the traced functions
    mode: "RowMode"  # its options, as `Mode.compiled_in` has them
    block_length: int | None  # None: of a mode without blocks
    room: int  # columns for new tokens
    mask_id: int | None  # None: stepwise decoding of an AR model
    shifted: bool
    draw: Draw

    def spanning(self, columns: int) -> Self:
        """For rows of so many columns, whose prompts are prefilled in pieces."""
        return replace(self, room=columns)

    def program(self, weights: DecodingWeights, request: "RowRequest") -> "LeftToRight":
        """The traced functions of one decoding."""
        return self.kind(weights, request, self)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowRequest:
    """What is decoded: `pad_B` counts the padding columns before each prompt, a row ends at any token of `ends_E`, and
    `limit_B1` caps its new tokens: a row that may have none is done from the start. The ends and what follows the limit
    may be each row's own (requests.py).
    """

    prompts_BP: jax.Array | np.ndarray
    pad_B: jax.Array | np.ndarray
    seeds_B: jax.Array | np.ndarray
    ends_E: jax.Array | np.ndarray
    limit_B1: jax.Array | np.ndarray
    rule: Threshold
    temperature: float
    allowed_BW: jax.Array | np.ndarray | None = None  # int32, a bit for each id that may come next; None: all may
    logprobs_B: jax.Array | np.ndarray | None = None  # bool: which rows want their log-probabilities; None: none ever

    def settled(self, grown: "Grown") -> Settled:
        """What is settled; there are no commits, for a causal cache takes tokens as they come."""
        final = (grown.tokens_BX, grown.settled_at_BX, grown.start_B, grown.count_B, grown.forwards_B)
        tokens_BX, at_BX, start_B, count_B, forwards_B = on_host(final)
        columns = [slice(start - count, start) for start, count in zip(start_B, count_B, strict=True)]
        return Settled(tokens_BX, at_BX, columns, forwards_B, np.zeros_like(forwards_B), grown.logprobs)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Grown:
    """The carry of the loop."""

    tokens_BX: jax.Array
    settled_at_BX: jax.Array  # the row's forward that settled a token, from 1; the prefill is the first
    cache: KVCache | None
    start_B: jax.Array  # the first column that is not settled
    count_B: jax.Array  # new tokens
    forwards_B: jax.Array
    done_B: jax.Array
    aside: Any  # what the mode itself carries, a value of its own type
    logprobs: Logprobs | None = None


class LeftToRight:
    """The base of the modes' programs: shared arrays, the prefill and the forward over a window of each row."""

    def __init__(self, weights: DecodingWeights, request: RowRequest, settings: RowSettings):
        self.weights, self.request, self.settings, self.pad_B = weights, request, settings, request.pad_B
        self.mode = settings.mode
        self.keys_B = jax.vmap(jax.random.key)(request.seeds_B)
        self.P = request.prompts_BP.shape[1]
        self.X = self.S = self.P + settings.room + self.width - 1  # a window begins at the last settled token
        self.rotary = Rotary.of(weights.spec, self.S)

    @property
    def width(self) -> int:
        """Columns of a cycle's widest forward."""
        raise NotImplementedError

    def begin(self) -> Grown:
        """Prefills and settles the first tokens."""
        return self.enter(*self.prefill(Causal()))

    def piece(self, cache: KVCache, tokens_BX, start_B, new_B, length: int) -> Grown:
        """So many columns of rows' prompts, from `new` on; after the last ones, rows as they begin."""
        where = tokens_BX, self.rotary, Causal(), self.pad_B, start_B, new_B, length
        x_B1D, cache = forward_prompt(self.weights, cache, *where)
        return self.enter(self.fresh(tokens_BX, start_B, cache), x_B1D)

    def enter(self, rows: Grown, x_B1D) -> Grown:
        """Rows behind their prefilled prompts, with the first tokens: the next one, as AR gives it."""
        logits_B1V = self.logits(x_B1D)
        return self.settle(rows, self.choose(logits_B1V, rows.count_B), 1, 1, logits_B1V)

    def fresh(self, tokens_BX, start_B, cache: KVCache) -> Grown:
        """Rows with nothing settled."""
        zeros_B = jnp.zeros(len(start_B), jnp.int32)
        asked, V = self.request.logprobs_B is not None, self.weights.spec.vocab_size
        logprobs = Logprobs.empty(*tokens_BX.shape, V) if asked else None
        at_BX, done_B = jnp.zeros_like(tokens_BX), self.request.limit_B1[:, 0] < 1
        return Grown(tokens_BX, at_BX, cache, start_B, zeros_B, zeros_B, done_B, (), logprobs)

    def turn(self, rows: Grown) -> Grown:
        """Settles at least one token of each row that is not done."""
        raise NotImplementedError

    def advance(self, rows: Grown) -> Grown:
        """A few cycles, or until all rows are done."""
        goes_on = lambda carry: (carry[0] < _LOOK) & ~carry[1].done_B.all()  # noqa: E731
        cycle = lambda carry: (carry[0] + 1, self.turn(carry[1]))  # noqa: E731
        return jax.lax.while_loop(goes_on, cycle, (0, rows))[1]

    def outcome(self, rows: Grown) -> Grown:
        """Without the cache."""
        return replace(rows, cache=None, aside=None)

    def prefill(self, pattern: Pattern, noise_BT=None):
        """(rows with nothing settled, x_BTD): one forward over the prompt and this noise; the prompt is kept.

        Without noise the prompt's last column alone is read, and only that is computed of the last layer.
        """
        prompts_BP = self.request.prompts_BP
        B, P = prompts_BP.shape
        T = 0 if noise_BT is None else noise_BT.shape[1]
        filler = 0 if self.settings.mask_id is None else self.settings.mask_id
        tokens_BX = jnp.pad(prompts_BP, ((0, 0), (0, self.S - P)), constant_values=filler)
        tokens_BT = jnp.concatenate([prompts_BP, noise_BT], axis=1) if T else prompts_BP
        columns_T = jnp.arange(P + T)[None]
        segments_BT = (columns_T >= self.pad_B[:, None]).astype(jnp.int32)
        rotary_BT = self.rotary.at(jnp.maximum(columns_T - self.pad_B[:, None], 0))
        kept = dict(keep=P, length=self.S, drafts=T, read_mask_BTS=None if T else segments_BT[:, None] > 0)
        x_BTD, cache = prefill(self.weights, tokens_BT, rotary_BT, pattern, segments_BT, **kept)
        return self.fresh(tokens_BX, jnp.full(B, P, jnp.int32), cache), x_BTD

    def forward(self, rows: Grown, tokens_BT, start_B, seen_BTT, offset_T=None, drafts: int = 0, wanted_BT=True):
        """(x_BTD, cache): a window of T columns from start_B on, which sees what lies before it and `seen` of itself.

        `offset_T` are the positions of its columns, counted from start_B's own (default: 0, 1, 2, ...); the last
        `drafts` columns are noisy ones, on which adapters act. Columns outside `wanted_BT` are neither read nor seen.
        """
        B, T = tokens_BT.shape
        offset_BT = jnp.broadcast_to(np.arange(T) if offset_T is None else offset_T, (B, T))
        seen_BTT = jnp.broadcast_to(seen_BTT, (B, T, T))
        wanted_BT = ~rows.done_B[:, None] & wanted_BT
        how = dict(seen_BTT=seen_BTT, offset_BT=offset_BT, drafts=drafts, wanted_BT=wanted_BT)
        return forward_window(self.weights, rows.cache, tokens_BT, self.rotary, self.pad_B, start_B, **how)

    def logits(self, x_BTD):
        """float32[B, T, V], of the mask token minus infinity: it is never chosen."""
        logits_BTV, mask_id, allowed_BW = self.weights.logits(x_BTD), self.settings.mask_id, self.request.allowed_BW
        if allowed_BW is not None:
            bits_BW32 = jnp.expand_dims(allowed_BW, -1) >> np.arange(32, dtype=np.int32)[None, None] & 1
            bits_BV = bits_BW32.reshape(len(bits_BW32), -1)[:, : logits_BTV.shape[-1]]
            logits_BTV = jnp.where(bits_BV[:, None] == 1, logits_BTV, -jnp.inf)
        if mask_id is None:
            return logits_BTV
        return jnp.where(jnp.arange(logits_BTV.shape[-1]) == mask_id, -jnp.inf, logits_BTV)

    def keys(self, first_B, T: int):
        """The keys of each row's new tokens from its number `first` on: by seed and number, whatever the batch."""
        return jax.vmap(lambda key, first: jax.vmap(partial(jax.random.fold_in, key))(first + jnp.arange(T)))(
            self.keys_B, first_B
        )

    def choose(self, logits_BTV, first_B):
        """int32[B, T]: AR's tokens by these logits, the greedy or the drawn ones; `first` numbers the first."""
        keys_BT = self.keys(first_B, logits_BTV.shape[1])
        return self.settings.draw.choose(logits_BTV, keys_BT, self.request.temperature)

    def settle(self, rows: Grown, new_BT, settled_B, forwards, logits_BTV=None) -> Grown:
        """Appends the first `settled_B` of new_BT, up to an end or the limit; `forwards` were spent on them.

        The logits are AR's, of lossless modes.
        """
        T, request, logprobs = new_BT.shape[1], self.request, rows.logprobs
        index_1T = jnp.arange(T)[None]
        ends_BT = (rows.count_B[:, None] + index_1T + 1 >= request.limit_B1) | is_end(new_BT, request.ends_E)
        first_end_B = jnp.where(ends_BT.any(axis=1), jnp.argmax(ends_BT, axis=1) + 1, T + 1)
        kept_B = jnp.where(rows.done_B, 0, jnp.minimum(settled_B, first_end_B))
        kept_BT = index_1T < kept_B[:, None]
        forwards_B = rows.forwards_B + forwards * ~rows.done_B
        at_BT = jnp.broadcast_to(forwards_B[:, None], new_BT.shape)
        if logprobs is not None:
            logprobs = logprobs.put(new_BT, logits_BTV, rows.start_B, kept_BT & request.logprobs_B[:, None])
        return replace(
            rows,
            tokens_BX=put(rows.tokens_BX, new_BT, rows.start_B, kept_BT),
            settled_at_BX=put(rows.settled_at_BX, at_BT, rows.start_B, kept_BT),
            start_B=rows.start_B + kept_B,
            count_B=rows.count_B + kept_B,
            forwards_B=forwards_B,
            done_B=rows.done_B | (kept_B == first_end_B),
            logprobs=logprobs,
        )
