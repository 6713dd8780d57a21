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

from edlm_jax.decoding.prompts import bucket
from edlm_jax.diffusion.streams import AUTOREGRESSIVE, Batch
from edlm_jax.errors import InputError, check_range
from edlm_jax.evaluation.heldout import heldout_objective
from edlm_jax.models import ModelSpec, Transformer
from edlm_jax.parallel.mesh import mesh_of, on_mesh
from edlm_jax.training.objective import Objective

_SHORTEST = 32  # columns of the smallest row; rows double from here, so that mixed lengths compile few programs
_AT_ONCE = 8  # samples in one forward
Pairs = Sequence[tuple[Sequence[int], Sequence[int]]]  # of context and continuation


@dataclass(frozen=True)
class Likelihood:
    """Nats of a continuation given its context."""

    log_likelihood: float
    standard_error: float  # 0 where it is exact, nan where a single sample does not tell
    num_samples: int
    greedy: bool | None = None  # AR: whether every token is the likeliest one; an estimate by masks does not say


def log_likelihood(
    model: Transformer, pairs: Pairs, *, mode: str | None = None, num_samples: int = 32, seed: int = 0
) -> list[Likelihood]:
    """Of each (context, continuation), by "ar" or "diffusion" (default: as the model was made).

    Diffusion is a lower bound's estimate by `num_samples` samples, with its standard error; exact at block length 1.
    Its context is block-causal, as trained, also where a checkpoint is decoded with another prefill.
    """
    mode = mode or ("diffusion" if model.spec.diffuses else "ar")
    check_likelihood(model.spec, mode)
    check_range("num_samples", num_samples)
    conversion = model.spec.conversion
    objective = heldout_objective(model, conversion.layout if conversion and mode == "diffusion" else AUTOREGRESSIVE)
    C, results = objective.layout.block_length, []
    num_samples = 1 if C == 1 else num_samples
    graphdef, state = nnx.split(model)
    for index, (context, continuation) in enumerate(pairs):
        if not len(context) or not len(continuation):
            raise InputError(f"pair {index}: context and continuation need at least one token each")
        if (length := len(context) + len(continuation)) > model.spec.max_length:
            raise InputError(f"pair {index}: {length} tokens exceed the model's {model.spec.max_length}")
        # As in decoding, the continuation begins a block, unless blocks are counted from position 0.
        batch = _row(context, continuation, C, 0 if model.spec.on_position_grid else -len(context) % C)
        keys_S = jax.random.split(jax.random.fold_in(jax.random.key(seed), index), num_samples)
        with on_mesh(mesh_of(state)):
            estimates_S, greedy_S = map(np.asarray, _samples(graphdef, state, objective, batch, keys_S))
        error = float(estimates_S.std(ddof=1) / num_samples**0.5) if num_samples > 1 else 0.0 if C == 1 else np.nan
        greedy = bool(greedy_S[0]) if mode == "ar" else None
        results.append(Likelihood(float(estimates_S.mean()), error, num_samples, greedy))
    return results


def check_likelihood(spec: ModelSpec, mode: str) -> None:
    """Raises InputError for a likelihood that a model has not."""
    if mode not in ("ar", "diffusion"):
        raise InputError(f"mode {mode!r} is unknown; choose 'ar' or 'diffusion'")
    if mode == "diffusion" and (spec.conversion is None or spec.conversion.layout.as_decoded().clean != "block_causal"):
        raise InputError("diffusion likelihood is for models converted with a block-causal context; AR's is mode='ar'")


def _row(context, continuation, C, pad) -> Batch:
    """One row with `pad` columns before the context; the continuation carries the loss."""
    start, used = pad + len(context), pad + len(context) + len(continuation)
    L = bucket(used, _SHORTEST)
    L += -L % C
    row: dict = {name: np.zeros((1, L), np.int32) for name in ("tokens", "positions", "segment_ids", "loss_mask")}
    row["tokens"][0, pad:used] = [*context, *continuation]
    row["positions"][0, pad:] = np.arange(L - pad)
    row["segment_ids"][0, pad:used] = row["loss_mask"][0, start:used] = 1
    return row


@partial(jax.jit, static_argnames=("graphdef", "objective"))
def _samples(graphdef, state, objective: Objective, batch: Batch, keys_S):
    """(log-likelihood, whether each token is the likeliest), float32[S] and bool[S]; AR has no noise to draw."""
    model = nnx.merge(graphdef, state)

    def sample(key):
        corruption = objective.corrupt(key[None], batch)
        x_1LD, (targets_L,), (wanted_L,) = objective.reads(model, batch, corruption)
        log_p_LV = log_probabilities(model, x_1LD[0])
        log_p_L = jnp.take_along_axis(log_p_LV, targets_L[:, None], axis=1)[:, 0] / corruption.noise_level_BM[0]
        return jnp.where(wanted_L, log_p_L, 0.0).sum(), jnp.all((log_p_LV.argmax(axis=1) == targets_L) | ~wanted_L)

    return jax.lax.map(sample, keys_S, batch_size=min(_AT_ONCE, len(keys_S)))


def log_probabilities(model: Transformer, x_LD: jax.Array) -> jax.Array:
    """float32[L, V] as decoding has them: the mask token, which is never proposed, gets none of the probability."""
    logits_LV = model.logits(x_LD[None])[0]
    if model.spec.conversion is not None:
        logits_LV = logits_LV.at[:, model.spec.conversion.mask_token_id].set(-jnp.inf)
    return jax.nn.log_softmax(logits_LV)
