"""Sub-blocks, finished from left to right inside a block, and their dual cache (Fast-dLLM v2, arXiv 2509.26328).

Shapes as in blocks.py, with sub-blocks of U tokens. Tokens are only accepted in the active sub-block, the first that
has a mask. With the dual cache, once its first token is known, only the active sub-block is forwarded: the rest of the
block stays in the cache as the last full forward left it, masks and all, which is an approximation.

    a b M M | M M M M     full while the active sub-block's first token is unknown (shifted logits are read before it)
        ^^^               then these two alone, against the cached K/V of the other six

Our choice: the prefill keeps the prompt alone, so the first block's second forward is full. The paper's code takes a
block's first token from the commit's logits: commit="first_token", as its checkpoints are read.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from edlm_jax.decoding.blocks import BlockProgram, BlockState
from edlm_jax.decoding.windows import put_whole, window

if TYPE_CHECKING:
    from edlm_jax.decoding.modes.diffusion import Diffusion


class SubBlocks(BlockProgram):
    """Every forward is of the whole block."""

    mode: "Diffusion"

    def open(self, block_BC):
        """The masks of the first sub-block that has any."""
        U, masked_BC = self.mode.sub_block_length, self.settings.is_noise(block_BC)
        sub_C = jnp.arange(block_BC.shape[1]) // U
        return masked_BC & (sub_C[None] == _active(masked_BC, U)[:, None])


class _Aside(NamedTuple):
    """What the states of a dual cache carry."""

    cached_B: jax.Array  # do the current block's K/V lie in the cache?


class DualCache(SubBlocks):
    """Forwards the active sub-block alone where it can."""

    def start(self, s: BlockState) -> BlockState:
        return replace(s, aside=_Aside(jnp.zeros_like(s.done_B)))

    def go_on(self, s: BlockState) -> BlockState:
        """Forwards whole blocks as long as any row needs it, then sub-blocks."""
        s = jax.lax.while_loop(lambda s: self.goes_on(s) & self._needs_full(s).any(), self.denoise, s)
        return jax.lax.while_loop(lambda s: self.goes_on(s) & ~self._needs_full(s).any(), self._narrow, s)

    def accept(self, s: BlockState, logits_BCV) -> BlockState:
        s = super().accept(s, logits_BCV)
        return replace(s, aside=_Aside(s.aside.cached_B & ~s.pending_B))

    def written(self, s: BlockState, first_B, T, where_B):
        """Of its current block a row writes all or, where that would do, what its own narrow forward would write."""
        U = self.mode.sub_block_length
        if T < self.C:
            return None  # a narrow forward writes all it has
        offset_BT = (first_B - s.start_B)[:, None] + jnp.arange(T)[None]
        active_BT = offset_BT // U == _active(self._masked(s), U)[:, None]
        current_BT = self._needs_full(s)[:, None] | active_BT
        before_B = jnp.zeros_like(s.done_B) if where_B is None else where_B
        return jnp.where(offset_BT >= 0, current_BT, before_B[:, None])

    def forward(self, s: BlockState, first_B, T, where_B=None, read=None):
        x_BTD, s = super().forward(s, first_B, T, where_B, read)
        has_current = where_B is None or T == 2 * self.C  # a commit of its own forwards the block before it alone
        return x_BTD, replace(s, aside=_Aside(s.aside.cached_B | has_current))

    def _narrow(self, s: BlockState) -> BlockState:
        """One step of every row's active sub-block, whose first token is known."""
        shifted, U = self.settings.shifted, self.mode.sub_block_length
        inside_B = _active(self._masked(s), U) * U
        x_BUD, s = super().forward(s, s.start_B + inside_B, U)
        logits_BUV = self.weights.logits(x_BUD[:, : U - shifted])
        empty_BCV = jnp.zeros((logits_BUV.shape[0], self.C, logits_BUV.shape[-1]))
        return self.accept(s, put_whole(empty_BCV, logits_BUV, inside_B + shifted))

    def _masked(self, s: BlockState):
        return self.settings.is_noise(window(s.tokens_BX, s.start_B, self.C))

    def _needs_full(self, s: BlockState):
        U, masked_BC = self.mode.sub_block_length, self._masked(s)
        first_B1 = (_active(masked_BC, U) * U)[:, None]
        first_masked_B = jnp.take_along_axis(masked_BC, first_B1, axis=1)[:, 0]
        return (~s.aside.cached_B | first_masked_B) & ~s.done_B


def _active(masked_BC, U):
    """int32[B]: the first sub-block with a mask."""
    return jnp.argmax(masked_BC, axis=1) // U
