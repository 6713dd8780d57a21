"""Editing: tokens that stand may be replaced (LLaDA2.1; technical report in inclusionAI/LLaDA2.X).

Shapes as in blocks.py. In each forward of a block, both from the same logits,
 - masks become tokens by the threshold, as in diffusion;
 - a token gives way to another one that has more than the confidence `edit` in its place.

    M M M M | a b M M | a x c d | a x c d       b was edited; the block was full, and the last forward left it so

A block, or the end of a row, that is full has up to `looks` forwards more, until one edits nothing; with none it is as
in diffusion, and edits happen while the block has masks. It takes a model that was trained on tokens that are wrong:
`config.objective.noise="own_guesses"`. A token counts as accepted in the forward that last changed it. A row that ends
inside a block looks no further: a lower limit may change tokens before it, in its block.
"""

from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar

import jax.numpy as jnp

from edlm_jax.decoding.blocks import BlockProgram
from edlm_jax.decoding.modes.mode import BlockMode, option
from edlm_jax.decoding.program import State
from edlm_jax.decoding.windows import window


class _Edit(BlockProgram):
    """Edits beside what is accepted. `aside` counts how often a full block was looked at."""

    mode: "Edit"

    def start(self, s: State) -> State:
        return replace(s, aside=jnp.zeros_like(s.start_B))

    def accept(self, s: State, logits_BCV) -> State:
        """Keeps what the rule accepts, and edits."""
        mode = self.mode
        proposal, s = self.propose(s, logits_BCV)
        block_BC = window(s.tokens_BX, s.start_B, self.C)
        masked_BC = self.open(block_BC)
        given_BC = self.index(s.start_B, self.C) < 0
        edited_BC = ~masked_BC & ~given_BC & (proposal.tokens_BC != block_BC) & (proposal.confidence_BC > mode.edit)
        full_B, finished_B = self.progress(block_BC, s.start_B)
        looked_B = full_B | finished_B
        looks_B = jnp.where(looked_B, s.aside + 1, 0)
        over_B = (looks_B >= mode.looks) | looked_B & ~edited_BC.any(axis=1)
        accepted_BC = self.request.rule(proposal, masked_BC) | edited_BC
        s = self.keep(s, proposal.tokens_BC, accepted_BC, over_B)
        return replace(s, aside=jnp.where(s.pending_B, 0, looks_B))


@dataclass(frozen=True)
class Edit(BlockMode):
    """Replaces tokens of the block where it has become sure of others."""

    name: ClassVar[str] = "edit"
    program: ClassVar[type[BlockProgram]] = _Edit
    greedy: ClassVar[bool] = True
    edit: float = option(0.9, float, "replace a token by one of more than this confidence", within=(0, 1))
    looks: int = option(1, int, "forwards of a full block, which may still edit it", within=(0, inf))
