"""The bases of the modes that finish block after block (blocks.py)."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from edlm_jax.attention import PLAIN
from edlm_jax.decoding.acceptance import Rule, Threshold, parse_rule
from edlm_jax.decoding.blocks import BlockProgram, BlockSettings, Request
from edlm_jax.decoding.engine import Run
from edlm_jax.decoding.modes.mode import Call, MaskMode, option
from edlm_jax.decoding.prompts import pad_prompts, split_prompts
from edlm_jax.decoding.sampling import Sampling
from edlm_jax.models import ModelSpec
from edlm_jax.models.cache import DecodingWeights
from edlm_jax.models.spec import PREFILLS


@dataclass(frozen=True)
class BlockMode(MaskMode):
    """A mode that finishes block after block."""

    prefill: str | None = option(None, str, f"how the prompt attends to itself: {', '.join(PREFILLS)}")
    grid: str | None = option(None, str, "where blocks are counted from: response (the prompt's end) or position (0)")
    threshold: float = option(
        0.9, float, "accept tokens of at least this confidence, and always the best one", compiled=False
    )

    @property
    def program(self) -> type[BlockProgram]:
        """Its traced functions."""
        raise NotImplementedError

    @property
    def commit(self) -> str | None:
        """How a finished block enters the cache (blocks.py): an option of some modes."""
        return "fused"

    @property
    def blocks(self) -> int:
        """Blocks that are denoised at a time: an option of multi_block."""
        return 1

    @property
    def acceptance(self) -> Rule:
        return Threshold(self.threshold)

    @property
    def has_threshold(self) -> bool:
        return True

    def completed(self, spec: ModelSpec) -> Self:
        mode = super().completed(spec)
        return replace(mode, prefill=mode.prefill or "block_causal", grid=mode.grid or "response")

    def check(self, spec: ModelSpec, sampling: Sampling) -> None:
        super().check(spec, sampling)
        for name in ("prefill", "grid"):
            value, trained = getattr(self, name), getattr(spec.conversion, name, None)
            if trained is not None and value != trained:
                converted = f"the {trained!r} this checkpoint was converted for"
                what = f"{name} {value!r} is not {converted}: its prompts will look unlike those of training"
                warnings.warn(what, stacklevel=4)

    def start(self, weights: DecodingWeights, prompts: Sequence[Sequence[int]], call: Call) -> Run:
        """The decoding of these prompts by a block program."""
        C, mask_id = self.block_length, self.mask_id
        assert C and mask_id is not None and self.prefill  # it is completed
        prompts, given = split_prompts(prompts, C if self.grid == "position" else 1)
        prompts_BP, pad_B = pad_prompts(prompts, C, call.spec.max_length)
        request = Request(
            prompts_BP=prompts_BP,
            pad_B=pad_B,
            first_block_BC=np.array([row + [mask_id] * (C - len(row)) for row in given], np.int32),
            first_B=np.array([prompts_BP.shape[1] + len(row) for row in given], np.int32),
            **self._request_fields(call),
        )
        settings = BlockSettings(
            kind=self.program,
            mode=self.compiled_in,
            block_length=C,
            # Counted from position 0, up to block_length - 1 tokens of the prompt lie in the first block.
            num_blocks=-(-(call.room + (C - 1) * (self.grid == "position")) // C),
            mask_id=mask_id,
            shifted=call.shifted,
            draw=call.draw,
            prefill=PLAIN[self.prefill](C),
        )
        return Run(weights, request, settings)


@dataclass(frozen=True)
class RuleMode(BlockMode):
    """A block mode that accepts by any rule."""

    rule: Rule | None = option(
        None, parse_rule, "another rule: factor:1, fixed:2, entropy:0.1, margin:0.5, prefix:0.9", compiled=False
    )

    @property
    def acceptance(self) -> Rule:
        return self.rule or super().acceptance

    @property
    def has_threshold(self) -> bool:
        return self.rule is None
