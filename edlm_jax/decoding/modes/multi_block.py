"""Several blocks in flight: a block begins before the one before it is done (MultiBD, arXiv 2606.29215, section 3.3).

Shapes as in blocks.py, with N blocks of C columns in flight and F = N C columns of a step. A row's blocks are, from
left to right, committed (their clean K/V lie in the cache), at most one to be committed, up to N active, and empty:

    committed | to commit | active, active           N = 2, a step per line; M mask, - empty
    a b c d   |           | e M M M   - - - -        the next block opens, a quarter of this one being there
    a b c d   |           | e f M h   i M M M
    a b c d   | e f g h   | i M k M   - - - -        e f g h rides along and is committed; the next one opens
    a b c d e f g h       | i j k M   m M M M

Attention is block-causal over the columns in flight, so a block sees what the ones before it hold by now, and the
commit is exact: of clean tokens, behind clean ones. With one block in flight this is diffusion with the fused commit.

 - The current block, the first active one, takes tokens of at least the threshold's confidence, and always its best.
 - The others take tokens of that confidence alone, so they may take none, and from the left: the first token that is
   not sure keeps back those behind it. Behind a block of which over 0.9 are there, which waits for the current one to
   be committed, they take what a current one would.
 - Another block opens when more than the share `opens` of the last active one is there.

The paper counts the block to be committed among its N; here it comes on top. It takes the others' sure tokens wherever
they stand (`anywhere`), and the block before it then contradicts some (docs/decoding.md has the figures).
"""

from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar

import jax
import jax.numpy as jnp

from edlm_jax.decoding.blocks import BlockProgram
from edlm_jax.decoding.modes.mode import BlockMode, option, read_switch
from edlm_jax.decoding.program import State
from edlm_jax.decoding.windows import window

_ALMOST = 0.9  # the paper's share of a block behind which the next one takes its best token


class _MultiBlock(BlockProgram):
    """Several blocks in flight; the request's rule is a threshold. `aside` counts the active blocks of each row."""

    mode: "MultiBlock"

    def start(self, s: State) -> State:
        return replace(s, aside=jnp.ones_like(s.start_B))

    def wanted(self, s: State, block_BT, where_B):
        return super().wanted(s, block_BT, where_B) & (block_BT < s.aside[:, None])

    def accept(self, s: State, logits_BTV) -> State:
        """Keeps what the rule accepts in every row's active blocks."""
        rule, C = self.request.rule, self.C
        proposal, s = self.propose(s, logits_BTV)
        masked_BT = self.open(window(s.tokens_BX, s.start_B, logits_BTV.shape[1]))
        by_block = lambda x_BT: x_BT.reshape(x_BT.shape[0], -1, C)  # noqa: E731
        masked_BNC = by_block(masked_BT)
        chosen_BNC = jax.vmap(rule, 1, 1)(jax.tree.map(by_block, proposal), masked_BNC)
        sure_BNC = by_block(rule.sure(proposal))
        if not self.mode.anywhere:
            sure_BNC &= jnp.cumsum(masked_BNC & ~sure_BNC, axis=2) == 0
        almost_BN = (~masked_BNC).sum(axis=2) > _ALMOST * C
        leads_BN = jnp.pad(almost_BN[:, :-1], ((0, 0), (1, 0)), constant_values=True)
        active_BN = jnp.arange(leads_BN.shape[1])[None] < s.aside[:, None]
        accepted_BNC = chosen_BNC & active_BN[..., None] & (leads_BN[..., None] | sure_BNC)
        return self.keep(s, proposal.tokens_BC, accepted_BNC.reshape(masked_BT.shape))

    def keep(self, s: State, tokens_BT, accepted_BT, over_B=True) -> State:
        """And opens another block, where it is time."""
        mode, C = self.mode, self.C
        s = super().keep(s, tokens_BT, accepted_BT, over_B)
        active_B = jnp.maximum(s.aside - s.pending_B, 1)
        last_BC = window(s.tokens_BX, s.start_B + (active_B - 1) * C, C)
        opens_B = ((~self.is_noise(last_BC)).sum(axis=1) > mode.opens * C) & (active_B < mode.blocks)
        return replace(s, aside=active_B + opens_B)


@dataclass(frozen=True)
class MultiBlock(BlockMode):
    """Denoises several blocks at a time."""

    name: ClassVar[str] = "multi_block"
    program: ClassVar[type[BlockProgram]] = _MultiBlock
    blocks: int = option(2, int, "blocks that are denoised at a time", within=(1, inf))
    opens: float = option(
        0.1, float, "open the next block when more than this share of the last one is there", within=(0, 1)
    )
    anywhere: bool = option(False, read_switch, "take sure tokens of later blocks out of turn, too, as its paper does")
