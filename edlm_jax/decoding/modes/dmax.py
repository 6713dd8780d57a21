"""DMax: soft parallel decoding of blocks, tokens revised until they agree (arXiv 2604.08302, soft parallel decoding).

Shapes as in blocks.py. In each forward of a block,
 - the longest run of masks from the left with at least the threshold's confidence becomes tokens, and always one;
 - every token that the block already has is read anew and may change;
 - a token goes in as p e(token) + (1 - p) e(mask), p its probability, at the length p |e(token)| + (1 - p) |e(mask)|.

    M M M M | a b M M | a c d e | a c d e       b was revised; nothing changed in the last forward: the block is done

A block is done when it has no mask and either nothing changed, or every token has the confidence `sure` (0.9 in the
paper), or it has taken C forwards, as many as one token a forward would. Then its hard tokens are committed as in
blocks.py. It takes a model trained on its own errors (config.objective.noise="own_guesses"); others fall apart, the
paper says. Its thresholds are low: 0.5 for mathematics, 0.65 for code.

Our choices where the paper is silent: the mask token is never a token, so p is taken without it; an EOS may be revised
like any token, so a row ends when its block is done, for which what lies behind the EOS or the limit does not count: a
lower limit may change tokens before it, in its block; each row stops alone, where the paper's code waits for the batch.
A token counts as accepted in the forward that last changed it.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp

from edlm_jax.decoding.acceptance import leftmost
from edlm_jax.decoding.blocks import BlockProgram
from edlm_jax.decoding.modes.mode import BlockMode, option
from edlm_jax.decoding.program import State
from edlm_jax.decoding.sampling import Sampling
from edlm_jax.decoding.windows import put, put_whole, window
from edlm_jax.errors import InputError


class _Aside(NamedTuple):
    """What its states carry."""

    p_BX: jax.Array  # how sure each token was; 1 outside the current block: hard embeddings
    steps_B: jax.Array  # forwards of the current block


class _DMax(BlockProgram):
    """Soft inputs and revisions; the request's rule is a threshold."""

    mode: "DMax"

    def start(self, s: State) -> State:
        return replace(s, aside=_Aside(jnp.ones(s.tokens_BX.shape), jnp.zeros_like(s.start_B)))

    def inputs(self, s: State, first_B, T):
        tokens_BT, p_BT1 = window(s.tokens_BX, first_B, T), window(s.aside.p_BX, first_B, T)[..., None]
        hard_BTD = self.weights.embed(tokens_BT).astype(jnp.float32)
        mask_11D = self.weights.embed(jnp.full((1, 1), self.settings.mask_id)).astype(jnp.float32)
        soft_BTD = p_BT1 * hard_BTD + (1 - p_BT1) * mask_11D
        length_BT1 = p_BT1 * _norm(hard_BTD) + (1 - p_BT1) * _norm(mask_11D)
        soft_BTD = soft_BTD * length_BT1 / jnp.maximum(_norm(soft_BTD), 1e-6)
        return jnp.where(p_BT1 < 1, soft_BTD, hard_BTD).astype(self.weights.dtype)

    def accept(self, s: State, logits_BCV) -> State:
        C, steps_B = self.C, s.aside.steps_B + 1
        proposal, s = self.propose(s, logits_BCV)
        block_BC = window(s.tokens_BX, s.start_B, C)
        masked_BC = self.is_noise(block_BC)
        active_BC = (self.index(s.start_B, C) >= 0) & ~s.done_B[:, None]
        written_BC = active_BC & (~masked_BC | leftmost(self.request.rule.sure(proposal), masked_BC))
        changed_BC = written_BC & (proposal.tokens_BC != block_BC)
        block_BC = jnp.where(written_BC, proposal.tokens_BC, block_BC)
        end_BC = self.ends(block_BC, s.start_B)
        counts_BC = jnp.cumsum(end_BC, axis=1) - end_BC == 0  # up to the first end
        sure_B = ((proposal.confidence_BC >= self.mode.sure) | ~active_BC | ~counts_BC).all(axis=1)
        over_B = ~(changed_BC & counts_BC).any(axis=1) | sure_B | (steps_B >= C)
        full_B = ~(self.is_noise(block_BC) & counts_BC).any(axis=1) & over_B & ~s.done_B
        finished_B = full_B & end_BC.any(axis=1)
        moves_B = full_B & ~finished_B
        p_BC = jnp.where(written_BC & ~full_B[:, None], proposal.confidence_BC, 1.0)
        at_BC = jnp.broadcast_to(s.denoise_B[:, None], block_BC.shape)
        return replace(
            s,
            tokens_BX=put_whole(s.tokens_BX, block_BC, s.start_B),
            accepted_at_BX=put(s.accepted_at_BX, at_BC, s.start_B, changed_BC),
            aside=_Aside(put_whole(s.aside.p_BX, p_BC, s.start_B), jnp.where(moves_B, 0, steps_B)),
            start_B=s.start_B + jnp.where(moves_B, C, 0),
            pending_B=moves_B,
            done_B=s.done_B | finished_B,
        )


@dataclass(frozen=True)
class DMax(BlockMode):
    """Feeds soft tokens back and revises them until they agree."""

    name: ClassVar[str] = "dmax"
    program: ClassVar[type[BlockProgram]] = _DMax
    greedy: ClassVar[bool] = True
    threshold: float = option(
        0.9, float, "accept from the left while tokens have at least this confidence", compiled=False
    )
    sure: float = option(
        0.9, float, "a block whose tokens all have this confidence needs no further look", within=(0, 1)
    )
    commit: str | None = option(None, str, "how a finished block enters the cache: fused or separate")

    def completed(self, spec) -> Self:
        # Not the checkpoint's own way: what decodes it plainly need not suit revisions.
        return BlockMode.completed(self if self.commit else replace(self, commit="fused"), spec)

    def check(self, spec, sampling: Sampling) -> None:
        super().check(spec, sampling)
        if self.commit == "first_token":
            raise InputError("dmax may revise any token, a block's first, too; set commit to 'fused' or 'separate'")


def _norm(x_BTD):
    return jnp.linalg.norm(x_BTD, axis=-1, keepdims=True)
