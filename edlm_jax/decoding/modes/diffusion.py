"""Block diffusion (arXiv 2512.14067, section 3.4; blocks.py), or in blocks of blocks (Fast-dLLM v2, arXiv 2509.26328).

Sub-blocks of U tokens are finished from left to right inside a block; the other shapes are those of blocks.py. Tokens
are only accepted in the active sub-block, the first that has a mask. With the dual cache, once its first token is
known, only the active sub-block is forwarded: the rest of the block stays in the cache as the last full forward left
it, masks and all, which is an approximation.

    a b M M | M M M M     full while the active sub-block's first token is unknown (shifted logits are read before it)
        ^^^               then these two alone, against the cached K/V of the other six

Our choice: the prefill keeps the prompt alone, so the first block's second forward is full. The paper's code takes a
block's first token from the commit's logits: commit="first_token", as its checkpoints are read.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import jax
import jax.numpy as jnp

from edlm_jax.decoding.blocks import BlockProgram
from edlm_jax.decoding.modes.mode import RuleMode, option, read_switch
from edlm_jax.decoding.program import State
from edlm_jax.decoding.sampling import Sampling
from edlm_jax.decoding.windows import put_whole
from edlm_jax.errors import InputError
from edlm_jax.models import ModelSpec


class _SubBlocks(BlockProgram):
    """Every forward is of the whole block."""

    mode: "Diffusion"

    def open(self, block_BC):
        """The masks of the first sub-block that has any."""
        masked_BC = self.is_noise(block_BC)
        sub_C = jnp.arange(self.C) // self.mode.sub_block_length
        return masked_BC & (sub_C[None] == self.active(masked_BC)[:, None])

    def active(self, masked_BC):
        """int32[B]: the first sub-block with a mask."""
        return jnp.argmax(masked_BC, axis=1) // self.mode.sub_block_length


class _DualCache(_SubBlocks):
    """Forwards the active sub-block alone where it can. `aside`: do the current block's K/V lie in the cache?"""

    def start(self, s: State) -> State:
        return replace(s, aside=jnp.zeros_like(s.done_B))

    def go_on(self, s: State) -> State:
        """Forwards whole blocks as long as any row needs it, then sub-blocks."""
        s = jax.lax.while_loop(lambda s: self.goes_on(s) & self._needs_full(s).any(), self.denoise, s)
        return jax.lax.while_loop(lambda s: self.goes_on(s) & ~self._needs_full(s).any(), self._narrow, s)

    def accept(self, s: State, logits_BCV) -> State:
        s = super().accept(s, logits_BCV)
        return replace(s, aside=s.aside & ~s.pending_B)

    def written(self, s: State, first_B, T, where_B):
        """Of its current block a row writes all or, where that would do, what its own narrow forward would write."""
        U = self.mode.sub_block_length
        if T < self.C:
            return None  # a narrow forward writes all it has
        offset_BT = (first_B - s.start_B)[:, None] + jnp.arange(T)[None]
        active_BT = offset_BT // U == self.active(self.masked(s))[:, None]
        current_BT = self._needs_full(s)[:, None] | active_BT
        before_B = jnp.zeros_like(s.done_B) if where_B is None else where_B
        return jnp.where(offset_BT >= 0, current_BT, before_B[:, None])

    def forward(self, s: State, first_B, T, where_B=None, read=None):
        x_BTD, s = super().forward(s, first_B, T, where_B, read)
        has_current = where_B is None or T == 2 * self.C  # a commit of its own forwards the block before it alone
        return x_BTD, replace(s, aside=s.aside | has_current)

    def _narrow(self, s: State) -> State:
        """One step of every row's active sub-block, whose first token is known."""
        shifted, U = self.settings.shifted, self.mode.sub_block_length
        inside_B = self.active(self.masked(s)) * U
        x_BUD, s = super().forward(s, s.start_B + inside_B, U)
        logits_BUV = self.weights.logits(x_BUD[:, : U - shifted])
        empty_BCV = jnp.zeros((logits_BUV.shape[0], self.C, logits_BUV.shape[-1]))
        return self.accept(s, put_whole(empty_BCV, logits_BUV, inside_B + shifted))

    def _needs_full(self, s: State):
        masked_BC = self.masked(s)
        unknown_B = masked_BC.any(axis=1) & (jnp.argmax(masked_BC, axis=1) % self.mode.sub_block_length == 0)
        return (~s.aside | unknown_B) & ~s.done_B


@dataclass(frozen=True)
class Diffusion(RuleMode):
    """Accepts by a rule inside a block; the next one's first forward commits it."""

    name: ClassVar[str] = "diffusion"
    commit: str | None = option(
        None, str, "how a finished block enters the cache: fused (in the next forward), separate, first_token"
    )
    sub_block_length: int | None = option(None, int, "finish blocks in parts of so many tokens, from left to right")
    dual_cache: bool = option(False, read_switch, "forward the active part of a block alone: an approximation")

    @property
    def program(self) -> type[BlockProgram]:
        if self.sub_block_length is None:
            return BlockProgram
        return _DualCache if self.dual_cache else _SubBlocks

    def completed(self, spec: ModelSpec) -> Self:
        mode = super().completed(spec)
        return replace(mode, commit=mode.commit or "fused")

    def check(self, spec: ModelSpec, sampling: Sampling) -> None:
        super().check(spec, sampling)
        U = self.sub_block_length
        if self.commit == "first_token" and (spec.conversion is None or spec.conversion.alignment != "shifted"):
            raise InputError("commit 'first_token' needs a model with shifted logits; choose 'fused' or 'separate'")
        if self.dual_cache and U is None:
            raise InputError("dual_cache needs sub_block_length: it keeps the block around the active sub-block")
        if U is not None and (U < 1 or self.block_length % U):
            raise InputError(f"sub_block_length {U} must divide the block length {self.block_length}")
