"""What a request to the engine is, and the row that it becomes: all that is its own beside what rows share."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from edlm_jax.decoding.acceptance import Threshold
from edlm_jax.decoding.ends import read_ends
from edlm_jax.decoding.modes import Mode
from edlm_jax.decoding.modes.mode import Call
from edlm_jax.decoding.prompts import refuse_prompt
from edlm_jax.decoding.sampling import RowDraw, RowSampling, Sampling
from edlm_jax.errors import InputError, check_range
from edlm_jax.models import ModelSpec
from edlm_jax.models.cache import DecodingWeights

MOST_ENDS = 8  # ids that end a row: the room for them is compiled in


# int32[W] of all new tokens so far: a bit for each id, the lowest first. It is called with more tokens each time.
Guide = Callable[[Sequence[int]], np.ndarray]


@dataclass(frozen=True)
class RequestSettings:
    """How one request is decoded, apart from all others."""

    limit: int  # the most new tokens
    seed: int = 0  # below 2**32, the row's own: what `Decoder` is given as `seed=[seed]`
    ends: int | Sequence[int] = ()  # at most 8 ids; the row ends at any of them, which is its last token
    temperature: float = 0.0  # 0: greedy
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    threshold: float | None = None  # None: the mode's own; of modes that have a threshold
    guide: Guide | None = None  # which tokens may come behind its new ones; of modes that are `guided`
    logprobs: bool = False  # what AR gives to its tokens, and to the best ones in their places; of lossless modes

    @property
    def sampling(self) -> Sampling:
        """The part that says how tokens are drawn."""
        return Sampling(self.temperature, self.top_k, self.top_p)


@dataclass(frozen=True)
class Row:
    """A request as its lane takes it: `request` is its own of everything, the prompt ends in `tokens_1X` at `start`."""

    request: Any
    settings: Any  # of the program, but for its length
    tokens_1X: np.ndarray
    start: int
    guide: Guide | None

    @property
    def pad(self) -> int:
        """Columns before the prompt."""
        return int(self.request.pad_B[0])


def check_request(spec: ModelSpec, mode: Mode, prompt: Sequence[int], settings: RequestSettings, columns: int) -> None:
    """Raises InputError for a request that can't be decoded in so many columns."""
    check_range("the limit of new tokens", settings.limit)
    if not 0 <= settings.seed < 2**32:
        raise InputError(f"a seed must lie in [0, 2**32), not {settings.seed}")
    if len(read_ends(settings.ends)) > MOST_ENDS:
        raise InputError(f"a row may end at {MOST_ENDS} tokens, not {np.size(settings.ends)}")
    with warnings.catch_warnings(action="ignore"):
        settings.sampling.check()
        mode.check(spec, settings.sampling)
    if settings.threshold is not None:
        Threshold(settings.threshold).check()
    if settings.logprobs and not mode.lossless:
        raise InputError(f"{mode} has no log-probabilities of its tokens; ar and the lossless modes have")
    if reason := refuse_prompt(spec, prompt, settings.limit, mode.banned_id):
        raise InputError(f"the prompt {reason}")
    if len(prompt) + settings.limit > columns:
        asked = f"{len(prompt)} tokens and {settings.limit} new ones"
        raise InputError(f"the prompt is too long: {asked} exceed the {columns} of a slot; shorten it or ask for fewer")


def make_row(
    weights: DecodingWeights, mode: Mode, prompt: Sequence[int], settings: RequestSettings, *, least: int, columns: int
) -> Row:
    """The row of a request that `check_request` has nothing against.

    Its prompt ends in column `start`, a multiple of the mode's unit and at least `least`: as little padding as that
    takes stands before it. `columns` are those of the row.
    """
    if settings.threshold is not None and mode.has_threshold:
        mode = replace(mode, **{"threshold": settings.threshold})
    limit_B, seeds_B = np.array([settings.limit], np.int32), np.array([settings.seed], np.uint32)
    call = Call(weights.spec, limit_B, settings.sampling, read_ends(settings.ends), seeds_B)
    run = mode.start(weights, [list(prompt)], call)
    request, program = run.request, run.settings
    prompt_T = request.prompts_BP[0, request.pad_B[0] :]  # less what the first block is given
    C = mode.unit
    start = max(-(-len(prompt_T) // C) * C, least)
    tokens_1X = np.full((1, columns), program.mask_id or 0, np.int32)
    tokens_1X[0, start - len(prompt_T) : start] = prompt_T
    tokens_1X[0, start : start + C] = request.first_block_BC[0]
    numbers = np.float32(settings.temperature), np.int32(settings.top_k), np.float32(settings.top_p)
    request = replace(
        request,
        prompts_BP=np.zeros((1, 0), np.int32),
        pad_B=np.array([start - len(prompt_T)], np.int32),
        first_B=request.first_B + start - request.prompts_BP.shape[1],
        ends_E=request.ends_E[None, None],
        rule=jax.tree.map(lambda x: np.full((1, 1), x, np.float32), request.rule),
        temperature=RowSampling(*(np.reshape(number, (1, 1, 1)) for number in numbers)),
    )
    if mode.guided:
        allowed_W = settings.guide([]) if settings.guide else np.full(-(-weights.spec.vocab_size // 32), -1, np.int32)
        request = replace(request, allowed_BW=allowed_W[None])
    if mode.lossless:
        request = replace(request, logprobs_B=np.array([settings.logprobs]))
    if not mode.greedy:
        drawn = Sampling(temperature=1.0).draw(weights.spec.conversion)
        program = replace(program, draw=RowDraw(drawn_confidence=drawn.drawn_confidence))
    return Row(request, program, tokens_1X, start, settings.guide)
