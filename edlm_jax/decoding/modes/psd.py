"""PSD, parallel speculative decoding: several denoising steps of a block in one forward (arXiv 2605.15609).

Shapes as in blocks.py, with G guesses at a block side by side. Training-free. After a forward,
 1. the rule unmasks tokens, as in diffusion mode;
 2. guesses of depth 1 to d fill one more mask each, in order of confidence, with what the same forward proposed;
 3. the next forward takes the unmasked block and all its guesses at once, each alone with the cache;
 4. a guess stands if the one before it stands and, in this forward, proposed the token that it adds; the deepest that
    stands goes on to 1, with what it proposed itself.

    cache | a b M M | a b c M | a b c d       proposes c from the first and e, not d, from the second:
                                              a b c M goes on, where diffusion mode would stand at a b M M

So each forward is worth at least one of diffusion mode's, and depth 0 is diffusion mode. When the block is full
already, the forward takes [block | next masks] instead: its commit rides along, as in blocks.py.

Our choices where the paper is silent: one token a depth; a draft's tokens need not be sure, only agreed upon; G = d + 1
windows of one row instead of a batch, so that the cache is not copied. The paper finds little beyond d = 3.
"""

from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from edlm_jax.decoding.acceptance import rank
from edlm_jax.decoding.blocks import BlockProgram
from edlm_jax.decoding.modes.mode import RuleMode, option
from edlm_jax.decoding.program import State
from edlm_jax.decoding.sampling import best_token
from edlm_jax.decoding.windows import put, window


class _Aside(NamedTuple):
    """What its states carry: what the last forward proposed for the current block."""

    proposed_BC: jax.Array
    confidence_BC: jax.Array


class _PSD(BlockProgram):
    """Guesses side by side."""

    mode: "PSD"

    def __init__(self, weights, request, settings):
        super().__init__(weights, request, settings)
        self.G = max(self.mode.depth, 1) + 1  # a pending block and the next one need two windows
        self.width = self.G * self.C
        self.S += self.width

    def start(self, s: State) -> State:
        # Nothing is guessed before the first forward: a mask that masks would fill stays one.
        shape_BC = s.start_B.shape[0], self.C
        return replace(s, aside=_Aside(jnp.full(shape_BC, self.settings.mask_id, jnp.int32), jnp.zeros(shape_BC)))

    def turn(self, s: State) -> State:
        """At least one cycle, until some row has finished a block."""
        goes_on = lambda carry: carry[0] | self.goes_on(carry[1])  # noqa: E731
        cycle = lambda carry: (jnp.zeros((), bool), self._cycle(carry[1]))  # noqa: E731
        return jax.lax.while_loop(goes_on, cycle, (jnp.ones((), bool), s))[1]

    def accept(self, s: State, logits_BCV) -> State:
        """As in diffusion mode; what was proposed is kept for the guesses."""
        proposal, _ = self.propose(s, logits_BCV)
        s = super().accept(s, logits_BCV)
        return replace(s, aside=_Aside(proposal.tokens_BC, proposal.confidence_BC))

    def _cycle(self, s: State) -> State:
        guesses_BGC = self._guesses(s)
        added_BGC = guesses_BGC[:, 1:] != guesses_BGC[:, :-1]
        # Where no mask is left to fill, deeper guesses are the same once more; of a pending row two windows are used.
        deeper_BG = added_BGC.any(axis=-1) & (~s.pending_B[:, None] | (jnp.arange(1, self.G) == 1)[None])
        logits_BGCV, s = self._forward_all(s, guesses_BGC, jnp.pad(deeper_BG, ((0, 0), (1, 0)), constant_values=True))
        agreed_BGC = best_token(logits_BGCV.at[..., self.settings.mask_id].set(-jnp.inf))
        stands_BG = (~added_BGC | (agreed_BGC[:, :-1] == guesses_BGC[:, 1:])).all(axis=-1) & deeper_BG
        deepest_B = jnp.where(s.pending_B, 1, jnp.cumprod(stands_BG, axis=1).sum(axis=1))
        logits_BCV = jnp.take_along_axis(logits_BGCV, deepest_B[:, None, None, None], axis=1)[:, 0]
        block_BC = jnp.take_along_axis(guesses_BGC, deepest_B[:, None, None], axis=1)[:, 0]
        added_BC = (block_BC != window(s.tokens_BX, s.start_B, block_BC.shape[1])) & ~s.done_B[:, None]
        at_BC = jnp.broadcast_to(s.denoise_B[:, None] + 1, block_BC.shape)
        s = replace(
            s,
            tokens_BX=put(s.tokens_BX, block_BC, s.start_B, added_BC),
            accepted_at_BX=put(s.accepted_at_BX, at_BC, s.start_B, added_BC),
        )
        return self.accept(s, logits_BCV)

    def _guesses(self, s: State):
        """int32[B, G, C]: the block and ever deeper guesses at it; of a pending row the full block, then masks."""
        block_B1C = window(s.tokens_BX, s.start_B, self.C)[:, None]
        masked_B1C = self.is_noise(block_B1C)
        rank_B1C = rank(s.aside.confidence_BC, masked_B1C[:, 0])[:, None]
        depth_1G1 = jnp.minimum(jnp.arange(self.G), self.mode.depth)[None, :, None]
        guesses_BGC = jnp.where(masked_B1C & (rank_B1C < depth_1G1), s.aside.proposed_BC[:, None], block_B1C)
        full_B1C = window(s.tokens_BX, s.start_B - self.C, self.C)[:, None]
        two_BGC = jnp.where(jnp.arange(self.G)[None, :, None] == 0, full_B1C, block_B1C)
        return jnp.where(s.pending_B[:, None, None], two_BGC, guesses_BGC)

    def _forward_all(self, s: State, guesses_BGC, wanted_BG):
        """(logits_BGCV, s): each guess sees the cache and itself; the windows of a pending row also its full block."""
        B, G, C = guesses_BGC.shape
        group_T = jnp.arange(G * C) // C
        pending_B11 = s.pending_B[:, None, None]
        seen_BTT = (group_T[None, :, None] == group_T[None, None]) | pending_B11 & (group_T == 0)[None, None]
        next_BT = s.pending_B[:, None] & (group_T > 0)[None]
        offset_BT = jnp.arange(G * C)[None] % C + jnp.where(next_BT, C, 0)
        first_B = s.start_B - jnp.where(s.pending_B, C, 0)
        how = dict(offset_BT=offset_BT, wanted_BT=jnp.repeat(wanted_BG, C, axis=1))
        x_BTD, s = self.forward_window(s, guesses_BGC.reshape(B, G * C), first_B, seen_BTT, **how)
        logits_BGCV = self.weights.logits(x_BTD).reshape(B, G, C, -1)
        if self.settings.shifted:
            before_BV = jnp.where(s.pending_B[:, None], logits_BGCV[:, 0, -1], s.before_BV)
            first_BG1V = jnp.broadcast_to(before_BV[:, None, None], (B, G, 1, before_BV.shape[-1]))
            logits_BGCV = jnp.concatenate([first_BG1V, logits_BGCV[:, :, :-1]], axis=2)
            s = replace(s, before_BV=before_BV)
        return logits_BGCV, s


@dataclass(frozen=True)
class PSD(RuleMode):
    """Diffusion with guesses several tokens deep, which the next forward verifies side by side."""

    name: ClassVar[str] = "psd"
    program: ClassVar[type[BlockProgram]] = _PSD
    greedy: ClassVar[bool] = True
    depth: int = option(3, int, "tokens that are guessed", flag="--draft-depth", within=(0, inf))
