"""What a decode mode is: a value whose fields are its options, read from a call, a command line or a text.

    Diffusion(rule=Threshold(0.9))  =  "diffusion:rule=threshold:0.9"        PSD(depth=3)  =  "psd:depth=3"

A field that is None is taken from the checkpoint's conversion (`completed`). A new mode is one file here and one line
in the registry (modes/__init__.py); commands read its options from the fields' metadata.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from math import inf
from typing import Any, ClassVar, Self

import jax
import numpy as np

from edlm_jax.attention import PLAIN, Causal, Pattern
from edlm_jax.decoding.acceptance import Rule, Threshold, parse_rule
from edlm_jax.decoding.engine import Run
from edlm_jax.decoding.program import Program, Request, Settings
from edlm_jax.decoding.prompts import bucket, pad_prompts, split_prompts
from edlm_jax.decoding.sampling import Sampling
from edlm_jax.errors import InputError, check_range
from edlm_jax.models import ModelSpec
from edlm_jax.models.cache import DecodingWeights
from edlm_jax.models.spec import CHOICES, PREFILLS

_LEAST_ROOM = 32  # columns for new tokens: few, for a cache to hold, and enough for the answers that are short


def option(
    default: Any,
    read: Any,
    help: str,
    *,
    flag: str | None = None,
    within: tuple[float, float] | None = None,
    compiled: bool = True,
) -> Any:
    """A field of a mode: `read` makes its value, a number `within` these two, from a command's text.

    `flag` is another name of its command-line argument, and its name in messages. What is not `compiled` in is an
    argument of the program: another value is no other program.
    """
    return field(default=default, metadata=dict(read=read, help=help, flag=flag, within=within, compiled=compiled))


@dataclass(frozen=True)
class Call:
    """What every mode is told beside its own options."""

    spec: ModelSpec
    limit_B: np.ndarray  # the most new tokens of each row
    sampling: Sampling
    ends_E: np.ndarray
    seeds_B: np.ndarray

    @property
    def room(self) -> int:
        """Columns for new tokens, of few numbers: each is a program."""
        return min(bucket(self.limit_B.max(), _LEAST_ROOM), self.spec.max_length)


@dataclass(frozen=True)
class Mode:
    """The base of all modes."""

    name: ClassVar[str]
    program: ClassVar[type[Program]]  # its traced functions
    greedy: ClassVar[bool] = False  # it compares tokens with its own best ones: no sampling
    lossless: ClassVar[bool] = False  # its text is AR's, greedy or drawn
    guided: ClassVar[bool] = False  # each new token can be told which it may be
    causal: ClassVar[bool] = False  # it reads next tokens from a causal stream, which not every conversion trains

    @property
    def banned_id(self) -> int | None:
        """The mask token of a mode that puts one into the model: no prompt may hold it."""
        return None

    @property
    def block_length(self) -> int | None:
        """Tokens of a block; None: the mode has no blocks."""
        return None

    @property
    def unit(self) -> int:
        """What a prompt ends at a multiple of: the columns of a block, where blocks are finished one after another."""
        return 1

    @property
    def prompt_pattern(self) -> Pattern:
        """How a prompt attends to itself."""
        return Causal()

    @property
    def shared(self) -> int:
        """The most tokens of a prompt that its first block may have."""
        return 0

    @property
    def threshold(self) -> float | None:
        """The confidence with which tokens are accepted: an option of most modes."""
        return None

    @property
    def rule(self) -> Rule | None:
        """What accepts instead: an option of some."""
        return None

    @property
    def acceptance(self) -> Rule:
        """The rule that accepts; without a threshold or one of its own, a token a forward."""
        return self.rule or Threshold(1.0 if self.threshold is None else self.threshold)

    @property
    def has_threshold(self) -> bool:
        """Does the threshold say what is accepted?"""
        return self.threshold is not None and self.rule is None

    @property
    def compiled_in(self) -> Self:
        """What a program is compiled for: None stands for its arguments, so that nothing traced can read them here."""
        return replace(self, **{f.name: None for f in fields(self) if not f.metadata["compiled"]})

    def completed(self, spec: ModelSpec) -> Self:
        """With what the checkpoint's conversion says where a field is None."""
        known = vars(spec.conversion) | {"mask_id": spec.conversion.mask_token_id} if spec.conversion else {}
        open_fields = [f.name for f in fields(self) if getattr(self, f.name) is None and f.name in known]
        return replace(self, **{name: known[name] for name in open_fields})

    def check(self, spec: ModelSpec, sampling: Sampling) -> None:
        """Raises InputError for what the completed mode cannot do, warns of what the checkpoint did not train."""
        self.acceptance.check()
        for f in fields(self):
            value, within = getattr(self, f.name), f.metadata["within"]
            if within and value is not None:
                flag = f.metadata["flag"] or f.name
                name = flag.removeprefix("--").replace("-", "_")
                check_range(name, value, *within)
                if value > spec.max_length:
                    raise InputError(f"{name} {value} is more than the model's {spec.max_length} positions")
        for name, choices in CHOICES.items():
            value = getattr(self, name, None)
            if value is not None and value not in choices:
                raise InputError(f"{name} {value!r} is unknown; choose one of {', '.join(choices)}")
        if self.greedy and sampling.temperature > 0:
            raise InputError(f"{self.name} is greedy: it compares tokens with its own best ones; use temperature 0")
        conversion = spec.conversion
        if self.causal and conversion is not None and not conversion.layout.next_tokens:
            what = f"{self.name} reads next tokens from a causal stream, which this checkpoint's conversion"
            trained = f"({conversion.pattern!r}) did not train; 'semi_block' and 'causal_block' do"
            warnings.warn(f"{what} {trained}", stacklevel=4)

    def start(self, weights: DecodingWeights, prompts: Sequence[Sequence[int]], call: Call) -> Run:
        """The decoding of these prompts."""
        C, mask_id, conversion = self.unit, self.banned_id, call.spec.conversion
        if mask_id is None and conversion is not None:
            mask_id = conversion.mask_token_id  # no token of a converted model, though this mode puts none in
        prompts, given = split_prompts(prompts, self.shared + 1)
        prompts_BP, pad_B = pad_prompts(prompts, C, call.spec.max_length)
        request = Request(
            prompts_BP=prompts_BP,
            pad_B=pad_B,
            first_block_BC=np.array([row + [mask_id or 0] * (C - len(row)) for row in given], np.int32),
            first_B=np.array([prompts_BP.shape[1] + len(row) for row in given], np.int32),
            seeds_B=call.seeds_B,
            ends_E=call.ends_E,
            limit_B1=call.limit_B[:, None],
            rule=jax.tree.map(np.float32, self.acceptance),  # of one type always, or an int would compile again
            temperature=float(call.sampling.temperature),
        )
        settings = Settings(
            mode=self.compiled_in,
            room=-(-(call.room + self.shared) // C) * C,
            mask_id=mask_id,
            shifted=conversion is not None and conversion.alignment == "shifted",
            draw=call.sampling.draw(conversion),
        )
        return Run(weights, request, settings)

    def __str__(self) -> str:
        """The mode as text; fields that have their default are left out."""
        given = [(f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default]
        return self.name + (":" + ",".join(f"{name}={value}" for name, value in given) if given else "")


@dataclass(frozen=True)
class MaskMode(Mode):
    """A mode that puts mask tokens into the model, in blocks."""

    block_length: int | None = option(None, int, "tokens of a block; default: those the model was converted with")
    mask_id: int | None = option(None, int, "the mask token; default: the one the model was converted with")

    @property
    def banned_id(self) -> int | None:
        return self.mask_id

    def check(self, spec: ModelSpec, sampling: Sampling) -> None:
        super().check(spec, sampling)
        if self.mask_id is None or self.causal and spec.conversion is None:
            raise InputError("this model was never converted and has no mask token; convert it or use mode='ar'")
        if not 0 <= self.mask_id < spec.vocab_size:
            raise InputError(f"mask_id {self.mask_id} is outside the vocabulary of {spec.vocab_size}")
        if self.block_length is None or self.block_length < 1:
            raise InputError(f"block_length must be a positive number of tokens, not {self.block_length}")
        if self.block_length > spec.max_length:
            raise InputError(f"block_length {self.block_length} is longer than the model's {spec.max_length} positions")
        conversion = spec.conversion
        if conversion is not None and self.block_length > conversion.block_length:
            most = f"the {conversion.block_length} this checkpoint was converted with"
            what = f"block_length {self.block_length} is above {most}: it never saw so many masks at once"
            warnings.warn(what, stacklevel=4)


@dataclass(frozen=True)
class BlockMode(MaskMode):
    """A mode that finishes block after block (blocks.py)."""

    prefill: str | None = option(None, str, f"how the prompt attends to itself: {', '.join(PREFILLS)}")
    grid: str | None = option(None, str, "where blocks are counted from: response (the prompt's end) or position (0)")
    threshold: float = option(
        0.9, float, "accept tokens of at least this confidence, and always the best one", compiled=False
    )

    @property
    def unit(self) -> int:
        assert self.block_length  # it is completed
        return self.block_length

    @property
    def prompt_pattern(self) -> Pattern:
        assert self.prefill  # as above
        return PLAIN[self.prefill](self.unit)

    @property
    def shared(self) -> int:
        return self.unit - 1 if self.grid == "position" else 0  # blocks are counted from position 0

    @property
    def commit(self) -> str | None:
        """How a finished block enters the cache (blocks.py): an option of some modes."""
        return "fused"

    @property
    def blocks(self) -> int:
        """Blocks that are denoised at a time: an option of multi_block."""
        return 1

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


@dataclass(frozen=True)
class RuleMode(BlockMode):
    """A block mode that accepts by any rule."""

    rule: Rule | None = option(
        None, parse_rule, "another rule: factor:1, fixed:2, entropy:0.1, margin:0.5, prefix:0.9", compiled=False
    )


@dataclass(frozen=True)
class DraftMode(MaskMode):
    """A mode whose masks draft what a causal forward verifies (speculation.py): the text is AR's."""

    lossless: ClassVar[bool] = True
    causal: ClassVar[bool] = True
    drafts: int | None = option(
        None, int, "tokens that are drafted; default: one less than a block has", within=(0, inf)
    )

    def completed(self, spec: ModelSpec) -> "DraftMode":
        mode = super().completed(spec)
        if mode.drafts is None:
            return replace(mode, drafts=mode.block_length and mode.block_length - 1)
        return replace(mode, block_length=mode.drafts + 1)


def read_switch(value: str) -> bool:
    """A switch, as text: yes or no."""
    if value not in ("yes", "no", "True", "False"):
        raise ValueError
    return value in ("yes", "True")
