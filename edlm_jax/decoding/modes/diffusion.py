"""Block diffusion (arXiv 2512.14067, section 3.4; blocks.py), or in blocks of blocks (Fast-dLLM v2; sub_blocks.py)."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from edlm_jax.decoding.blocks import BlockProgram
from edlm_jax.decoding.modes.block_mode import RuleMode
from edlm_jax.decoding.modes.mode import option, read_switch
from edlm_jax.decoding.sampling import Sampling
from edlm_jax.decoding.sub_blocks import DualCache, SubBlocks
from edlm_jax.errors import InputError
from edlm_jax.models import ModelSpec


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
        return DualCache if self.dual_cache else SubBlocks

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
