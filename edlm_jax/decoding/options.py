"""The arguments of one decoding call: checked, completed from the checkpoint, compared with what it was trained for."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edlm_jax.decoding.acceptance import Rule, Sampling, Threshold, parse_rule
from edlm_jax.decoding.ends import read_ends
from edlm_jax.errors import InputError
from edlm_jax.models import ModelSpec
from edlm_jax.models.spec import COMMITS, CONFIDENCES, GRIDS, PREFILLS


@dataclass(frozen=True)
class Options:
    """What a mode reads of a call; the checkpoint's conversion fills in what the call leaves open."""

    spec: ModelSpec
    max_new_tokens: int
    block_length: int | None  # None: an AR model that was never converted
    prefill: str
    grid: str
    mask_id: int | None
    ends_E: np.ndarray
    threshold: float
    rule: Rule | None  # None: the call names none
    sampling: Sampling
    temperature: float
    seeds_B: np.ndarray
    commit: str | None  # None: the call names none
    draft_depth: int
    sub_block_length: int | None
    dual_cache: bool

    @property
    def shifted(self) -> bool:
        """Does logit i predict token i + 1?"""
        return self.spec.conversion is not None and self.spec.conversion.alignment == "shifted"

    @property
    def on_position_grid(self) -> bool:
        """Are blocks counted from position 0?"""
        return self.grid == "position"

    @property
    def acceptance(self) -> Rule:
        """The rule that diffusion accepts by."""
        return self.rule or Threshold(self.threshold)


def read_options(
    spec: ModelSpec,
    *,
    max_new_tokens,
    block_length,
    threshold,
    rule,
    temperature,
    top_k,
    top_p,
    seeds_B,
    eos_id,
    prefill,
    grid,
    confidence,
    commit,
    mask_id,
    draft_depth,
    sub_block_length,
    dual_cache,
) -> Options:
    """The options of `Decoder.__call__`, or an InputError that names the one that cannot be."""
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be positive, not {max_new_tokens}")
    if temperature < 0:
        raise InputError(f"temperature must not be negative, not {temperature}")
    if top_k < 0 or not 0 < top_p <= 1:
        raise InputError(f"top_k must not be negative and top_p must lie in (0, 1], not {top_k} and {top_p}")
    if temperature == 0 and (top_k or top_p < 1):
        warnings.warn("top_k and top_p choose what is sampled from: at temperature 0 they change nothing", stacklevel=3)
    for name, value, choices in (
        ("prefill", prefill, PREFILLS),
        ("grid", grid, GRIDS),
        ("confidence", confidence, CONFIDENCES),
        ("commit", commit, COMMITS),
    ):
        if value is not None and value not in choices:
            raise InputError(f"{name} {value!r} is unknown; choose one of {', '.join(choices)}")
    if block_length is not None and block_length < 1:
        raise InputError(f"block_length must be a positive number of tokens, not {block_length}")
    if draft_depth < 0:
        raise InputError(f"draft_depth must not be negative, not {draft_depth}")
    rule = parse_rule(rule) if isinstance(rule, str) else rule
    (rule or Threshold(threshold)).check()
    conversion = spec.conversion
    if commit == "first_token" and (conversion is None or conversion.alignment != "shifted"):
        raise InputError("commit 'first_token' needs a model with shifted logits; choose 'fused' or 'separate'")
    _warn_of_untrained(conversion, block_length, prefill=prefill, grid=grid)
    drawn = (confidence or (conversion.confidence if conversion else "raw")) == "drawn"
    return Options(
        spec=spec,
        max_new_tokens=max_new_tokens,
        block_length=block_length or (conversion.block_length if conversion else None),
        prefill=prefill or (conversion.prefill if conversion else "block_causal"),
        grid=grid or (conversion.grid if conversion else "response"),
        mask_id=conversion.mask_token_id if mask_id is None and conversion else mask_id,
        ends_E=read_ends(eos_id),
        threshold=float(threshold),
        rule=rule,
        sampling=Sampling(False, top_k, top_p, drawn) if temperature > 0 else Sampling(),
        temperature=float(temperature),
        seeds_B=seeds_B,
        commit=commit,
        draft_depth=draft_depth,
        sub_block_length=sub_block_length,
        dual_cache=dual_cache,
    )


def refuse_prompts(
    spec: ModelSpec, prompts: Sequence[Sequence[int]], max_new_tokens: int, mask_id: int | None
) -> dict[int, str]:
    """index -> reason, one line, of the prompts that cannot be decoded; `mask_id`: what none may hold, if anything."""
    reasons = {}
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            reasons[index] = f"prompt {index} is empty; give at least one token"
        elif len(prompt) + max_new_tokens > spec.max_length:
            reasons[index] = (
                f"prompt {index} is too long: {len(prompt)} tokens and {max_new_tokens} new ones exceed the model's "
                f"cache of {spec.max_length}; shorten it or ask for fewer"
            )
        elif mask_id is not None and mask_id in prompt:
            reasons[index] = f"prompt {index} holds the mask token {mask_id}; remove it"
        elif not all(0 <= token < spec.vocab_size for token in prompt):
            reasons[index] = f"prompt {index} holds a token outside the vocabulary of {spec.vocab_size}"
    return reasons


def _warn_of_untrained(conversion, block_length, **prompt) -> None:
    if conversion is None:
        return
    if block_length is not None and block_length > conversion.block_length:
        warnings.warn(
            f"block_length {block_length} is above the {conversion.block_length} this checkpoint was converted with: "
            "it never saw so many masks at once",
            stacklevel=4,
        )
    for name, value in prompt.items():
        if value is not None and value != getattr(conversion, name):
            warnings.warn(
                f"{name} {value!r} is not the {getattr(conversion, name)!r} this checkpoint was converted for: "
                "its prompts will look unlike those of training",
                stacklevel=4,
            )
