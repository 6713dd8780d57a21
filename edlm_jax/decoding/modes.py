"""The modes by name: what each asks of a call, and how it runs, whole or in pieces."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np

from edlm_jax.attention import Bidirectional, BlockCausal, Causal
from edlm_jax.decoding.autoregressive import decode_autoregressive
from edlm_jax.decoding.blocks import BlockSettings, Request, begin_blocks, decode_blocks, next_blocks
from edlm_jax.decoding.dmax import DMaxSettings
from edlm_jax.decoding.generation import Generation, collect_autoregressive, collect_blocks, collect_rows, on_host
from edlm_jax.decoding.left_to_right import RowRequest, RowSettings, begin_rows, decode_rows, next_rows
from edlm_jax.decoding.mars import MarsSettings
from edlm_jax.decoding.options import Options
from edlm_jax.decoding.prompts import pad_prompts, split_prompts
from edlm_jax.decoding.psd import PSDSettings
from edlm_jax.decoding.quadratic import QuadraticSettings
from edlm_jax.decoding.speculation import LinearSettings
from edlm_jax.decoding.stepwise import StepwiseSettings
from edlm_jax.decoding.sub_blocks import SubBlockSettings
from edlm_jax.errors import InputError
from edlm_jax.models.cache import DecodingWeights


@dataclass(frozen=True)
class Run:
    """One decoding, whole or in pieces. A state is what the programs pass on; its `done_B` says which rows ended."""

    whole: Callable[[], Generation]
    begin: Callable[[], Any]
    advance: Callable[[Any], Any]
    collect: Callable[[Any], Generation]


@dataclass(frozen=True)
class Mode:
    """One mode: `start(weights, prompts, options)` is its run; the rest is what it refuses or warns of."""

    start: Callable[[DecodingWeights, list[list[int]], Options], Run]
    masks: bool = True  # it puts the mask token into the model
    greedy: bool = False  # it verifies tokens, or revises them: no sampling
    accepts: bool = True  # by a rule or a threshold; else its tokens are those of decoding one by one
    threshold_only: bool = False  # it has its own way of accepting, by the threshold alone
    causal: bool = False  # it reads next tokens from a causal stream, which not every conversion trains

    def check(self, name: str, options: Options) -> None:
        """Raises InputError for what the mode cannot do, warns of what the checkpoint was not trained for."""
        if self.masks and options.mask_id is None:
            raise InputError("this model was never converted and has no mask token; convert it or use mode='ar'")
        if self.masks and self.causal and options.spec.conversion is None:
            raise InputError("this model was never converted; convert it or use mode='ar'")
        if self.masks and options.block_length is None:
            raise InputError("block_length must be a positive number of tokens, not None")
        if self.greedy and options.temperature > 0:
            raise InputError(f"{name} is greedy: it compares tokens with its own best ones; use temperature 0")
        if not self.accepts and options.rule is not None:
            raise InputError(f"{name} has nothing to accept by a rule; leave it out")
        if self.threshold_only and options.rule is not None:
            raise InputError(f"{name} accepts by its threshold alone; leave out the rule")
        if options.sub_block_length is not None and name != "diffusion":
            raise InputError(f"sub-blocks belong to diffusion mode; leave out sub_block_length with {name}")
        if options.dual_cache and options.sub_block_length is None:
            raise InputError("dual_cache needs sub_block_length: it keeps the block around the active sub-block")
        conversion = options.spec.conversion
        if self.causal and conversion is not None and conversion.pattern != "semi_block":
            warnings.warn(
                f"{name} reads next tokens from a causal stream, which this checkpoint's conversion "
                f"({conversion.pattern!r}) did not train; 'semi_block' does",
                stacklevel=3,
            )


def _diffusion(weights, prompts, options) -> Run:
    conversion, U = options.spec.conversion, options.sub_block_length
    fields = _block_fields(options, options.commit or (conversion.commit if conversion else "fused"))
    if U is None:
        return _blocks(weights, prompts, options, BlockSettings(**fields))
    if U < 1 or options.block_length % U:
        raise InputError(f"sub_block_length {U} must divide the block length {options.block_length}")
    settings = SubBlockSettings(**fields, sub_block_length=U, dual_cache=options.dual_cache)
    return _blocks(weights, prompts, options, settings)


def _dmax(weights, prompts, options) -> Run:
    if options.commit == "first_token":
        raise InputError("dmax may revise any token of a block, the first, too; set commit to 'fused' or 'separate'")
    return _blocks(weights, prompts, options, DMaxSettings(**_block_fields(options, options.commit or "fused")))


def _psd(weights, prompts, options) -> Run:
    if options.commit not in (None, "fused"):
        raise InputError("psd commits a block in the next one's first forward; leave commit at 'fused'")
    settings = PSDSettings(**_block_fields(options, "fused"), depth=options.draft_depth)
    return _blocks(weights, prompts, options, settings)


def _block_fields(options: Options, commit: str) -> dict[str, Any]:
    C = options.block_length
    patterns = {"block_causal": BlockCausal(C), "bidirectional": Bidirectional(), "causal": Causal()}
    return dict(
        block_length=C,
        # Counted from position 0, up to block_length - 1 tokens of the prompt lie in the first block.
        num_blocks=-(-(options.max_new_tokens + (C - 1) * options.on_position_grid) // C),
        mask_id=options.mask_id,
        shifted=options.shifted,
        sampling=options.sampling,
        fused_commit=commit == "fused",
        first_token=commit == "first_token",
        prefill=patterns[options.prefill],
    )


def _blocks(weights, prompts, options, settings: BlockSettings) -> Run:
    C = settings.block_length
    prompts, given = split_prompts(prompts, C if options.on_position_grid else 1)
    prompts_BP, pad_B = pad_prompts(prompts, C, options.spec.max_length)
    request = Request(
        prompts_BP=prompts_BP,
        pad_B=pad_B,
        first_block_BC=np.array([row + [settings.mask_id] * (C - len(row)) for row in given], np.int32),
        given_B=np.array([len(row) for row in given], np.int32),
        seeds_B=options.seeds_B,
        ends_E=options.ends_E,
        limit=options.max_new_tokens,
        rule=jax.tree.map(np.float32, options.acceptance),  # of one type always, or an int would compile again
        temperature=options.temperature,
    )
    arguments = (weights, request, settings)
    collect = partial(collect_blocks, request=request)
    return Run(
        whole=lambda: collect(decode_blocks(*arguments)),
        begin=partial(begin_blocks, *arguments),
        advance=partial(next_blocks, *arguments),
        collect=collect,
    )


def _left_to_right(settings_class: type[RowSettings], weights, prompts, options) -> Run:
    prompts_BP, pad_B = pad_prompts(prompts, 1, options.spec.max_length)
    settings = settings_class(
        block_length=options.block_length,
        room=options.max_new_tokens,
        mask_id=options.mask_id,
        shifted=options.shifted,
        sampling=options.sampling,
    )
    limits = (options.ends_E, options.max_new_tokens, options.threshold, options.temperature)
    request = RowRequest(prompts_BP, pad_B, options.seeds_B, *limits)
    arguments = (weights, request, settings)
    collect = partial(collect_rows, request=request)
    return Run(
        whole=lambda: collect(decode_rows(*arguments)),
        begin=partial(begin_rows, *arguments),
        advance=partial(next_rows, *arguments),
        collect=collect,
    )


def _autoregressive(weights, prompts, options) -> Run:
    """Whole, by its own program, in which all rows share a column; in pieces, row by row."""
    prompts_BP, pad_B = pad_prompts(prompts, 1, options.spec.max_length)

    def whole() -> Generation:
        arrays = (weights, prompts_BP, pad_B, options.seeds_B, options.ends_E)
        limits = (options.max_new_tokens, options.temperature)
        fixed = dict(room=options.max_new_tokens, banned_id=options.mask_id, sampling=options.sampling)
        tokens_BX, count_B = on_host(decode_autoregressive(*arrays, *limits, **fixed))
        return collect_autoregressive(tokens_BX, count_B, prompts_BP.shape[1])

    return replace(_left_to_right(StepwiseSettings, weights, prompts, options), whole=whole)


MODES = {
    "diffusion": Mode(_diffusion),
    "ar": Mode(_autoregressive, masks=False, accepts=False, causal=True),
    "self_speculation": Mode(partial(_left_to_right, LinearSettings), greedy=True, accepts=False, causal=True),
    "quadratic_speculation": Mode(partial(_left_to_right, QuadraticSettings), greedy=True, accepts=False, causal=True),
    "psd": Mode(_psd, greedy=True),
    "dmax": Mode(_dmax, greedy=True, threshold_only=True),
    "mars": Mode(partial(_left_to_right, MarsSettings), threshold_only=True, causal=True),
}
