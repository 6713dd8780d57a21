"""How likely a model finds a continuation: exact for AR and for blocks of one token, an estimate for longer blocks.

Shapes: L columns of a row, S samples, C block length, V vocabulary, D width.

A block-diffusion model gives no closed form. For each block with n unknown tokens, mask k of them (`EvenCounts`); n / k
times the sum of their log-probabilities, given the rest of the block and everything before it, is an unbiased estimate
of the block's bound on its log-likelihood (LLaDA, arXiv 2502.09992, equation 6; there for a whole response). With n = 1
nothing is left to draw and the bound is the likelihood itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from edlm_jax.attention import Causal, CleanContext
from edlm_jax.decoding.prompts import bucket
from edlm_jax.diffusion.masks import EvenCounts
from edlm_jax.errors import InputError
from edlm_jax.models import ModelSpec, Transformer

_SHORTEST = 32  # columns of the smallest row; rows double from here, so that mixed lengths compile few programs
_AT_ONCE = 8  # samples in one forward


@dataclass(frozen=True)
class Likelihood:
    """Nats of a continuation given its context."""

    log_likelihood: float
    standard_error: float  # 0 where it is exact, nan where a single sample does not tell
    num_samples: int
    greedy: bool | None = None  # AR: whether every token is the likeliest one; an estimate by masks does not say


def log_likelihood(
    model: Transformer,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    mode: str | None = None,
    num_samples: int = 32,
    seed: int = 0,
) -> list[Likelihood]:
    """Of each (context, continuation), by "ar" or "diffusion" (default: as the model was made).

    Diffusion is a lower bound's estimate by `num_samples` samples, with its standard error; exact at block length 1.
    Its context is block-causal, as trained, also where a checkpoint is decoded with another prefill.
    """
    conversion = model.spec.conversion
    mode = mode or ("diffusion" if conversion else "ar")
    check_likelihood(model.spec, mode)
    if num_samples < 1:
        raise InputError(f"num_samples must be positive, not {num_samples}")
    C = conversion.block_length if conversion and mode == "diffusion" else 1
    num_samples = 1 if C == 1 else num_samples
    mask_id = conversion.mask_token_id if conversion else None
    graphdef, state = nnx.split(model)
    results = []
    for index, (context, continuation) in enumerate(pairs):
        _check(index, context, continuation, model.spec.max_length)
        # As in decoding, the continuation begins a block, unless blocks are counted from position 0.
        row = _row(context, continuation, C, 0 if model.spec.on_position_grid else -len(context) % C)
        greedy = None
        if mode == "ar":
            total, greedy = jax.device_get(_ar(graphdef, state, *row, mask_id))
            estimates_S, greedy = np.array([total]), bool(greedy)
        else:
            key = jax.random.fold_in(jax.random.key(seed), index)
            shifted = conversion is not None and conversion.alignment == "shifted"
            estimates_S = np.array(_bound(graphdef, state, *row, key, C, mask_id, shifted, num_samples))
        error = float(estimates_S.std(ddof=1) / num_samples**0.5) if num_samples > 1 else 0.0 if C == 1 else np.nan
        results.append(Likelihood(float(estimates_S.mean()), error, num_samples, greedy))
    return results


def check_likelihood(spec: ModelSpec, mode: str) -> None:
    """Raises InputError for a likelihood that a model has not."""
    if mode not in ("ar", "diffusion"):
        raise InputError(f"mode {mode!r} is unknown; choose 'ar' or 'diffusion'")
    if mode == "diffusion" and (spec.conversion is None or spec.conversion.layout.as_decoded().clean != "block_causal"):
        raise InputError("diffusion likelihood is for models converted with a block-causal context; use mode='ar'")


def _check(index, context, continuation, max_length):
    if not len(context) or not len(continuation):
        raise InputError(f"pair {index}: context and continuation need at least one token each")
    if len(context) + len(continuation) > max_length:
        raise InputError(f"pair {index}: {len(context) + len(continuation)} tokens exceed the model's {max_length}")


def _row(context, continuation, C, pad):
    """(tokens_L, positions_L, segments_L, unknown_L) with `pad` columns before the context."""
    used = pad + len(context) + len(continuation)
    L = bucket(used, _SHORTEST)
    L += -L % C
    columns_L = np.arange(L)
    tokens_L = np.zeros(L, np.int32)
    tokens_L[pad:used] = [*context, *continuation]
    segments_L = ((columns_L >= pad) & (columns_L < used)).astype(np.int32)
    unknown_L = (columns_L >= pad + len(context)) & (columns_L < used)
    return tokens_L, np.maximum(columns_L - pad, 0).astype(np.int32), segments_L, unknown_L


@partial(jax.jit, static_argnames=("graphdef", "mask_id"))
def _ar(graphdef, state, tokens_L, positions_L, segments_L, unknown_L, mask_id):
    model = nnx.merge(graphdef, state)
    x_1LD = model.hidden(
        tokens_L[None], pattern=Causal(), positions_BT=positions_L[None], segment_ids_BT=segments_L[None]
    )
    log_p_LV = _log_p(model, x_1LD[0, :-1], mask_id)
    wanted_L = tokens_L[1:]
    log_p_L = jnp.take_along_axis(log_p_LV, wanted_L[:, None], axis=1)[:, 0]
    return jnp.sum(log_p_L * unknown_L[1:]), jnp.all((jnp.argmax(log_p_LV, axis=1) == wanted_L) | ~unknown_L[1:])


@partial(jax.jit, static_argnames=("graphdef", "C", "mask_id", "shifted", "num_samples"))
def _bound(
    graphdef, state, tokens_L, positions_L, segments_L, unknown_L, key, C, mask_id, shifted, num_samples
):
    """float32[S]."""
    model, L = nnx.merge(graphdef, state), tokens_L.shape[0]
    twice = lambda x_L: jnp.tile(x_L, 2)[None]  # noqa: E731
    begins_block_L1 = (jnp.arange(L) % C == 0)[:, None]

    def sample(key):
        masked_L, weight_L = EvenCounts(mask_id).weigh(key, unknown_L, C)
        noisy_L = jnp.where(masked_L, mask_id, tokens_L)
        streams_1T = jnp.concatenate([noisy_L, tokens_L])[None]
        x_TD = model.hidden(
            streams_1T,
            pattern=CleanContext(L, C),
            positions_BT=twice(positions_L),
            segment_ids_BT=twice(segments_L),
        )[0]
        x_LD = x_TD[:L]
        if shifted:  # as the decoder reads it: a block's first token from the clean token before the block
            before_TD = jnp.roll(x_TD.reshape(2, L, -1), 1, axis=1)
            x_LD = jnp.where(begins_block_L1, before_TD[1], before_TD[0])
        log_p_L = jnp.take_along_axis(_log_p(model, x_LD, mask_id), tokens_L[:, None], axis=1)[:, 0]
        return jnp.sum(log_p_L * masked_L * weight_L)

    return jax.lax.map(sample, jax.random.split(key, num_samples), batch_size=min(_AT_ONCE, num_samples))


def _log_p(model, x_LD, mask_id):
    """float32[L, V]; the mask token, which is never proposed, gets none of the probability."""
    logits_LV = model.logits(x_LD[None])[0]
    if mask_id is not None:
        logits_LV = logits_LV.at[:, mask_id].set(-jnp.inf)
    return jax.nn.log_softmax(logits_LV)
