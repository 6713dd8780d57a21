"""AdamW with warm-up and a schedule, global-norm clipping, and decay on matrices alone."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import optax


@dataclass(frozen=True)
class Optimizer:
    """config.optimizer, which says what the fields mean; in a compiled step the learning rates may be arrays."""

    steps: int  # of the whole run
    learning_rate: float | jax.Array
    final_learning_rate: float | jax.Array
    schedule: Callable[["Optimizer"], optax.Schedule]  # what follows the warm-up: a value of SCHEDULES
    warmup_steps: int
    decay_steps: int
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    clip_norm: float
    accumulation: int


def _cosine(o: Optimizer) -> optax.Schedule:
    steps = max(o.steps - o.warmup_steps, 1)
    return optax.cosine_decay_schedule(o.learning_rate, steps, alpha=o.final_learning_rate / o.learning_rate)


def _wsd(o: Optimizer) -> optax.Schedule:
    stable = optax.constant_schedule(o.learning_rate)
    decay = optax.linear_schedule(o.learning_rate, o.final_learning_rate, o.decay_steps)
    return optax.join_schedules([stable, decay], [o.steps - o.warmup_steps - o.decay_steps])


SCHEDULES = {"cosine": _cosine, "wsd": _wsd, "constant": lambda o: optax.constant_schedule(o.learning_rate)}


def make_schedule(o: Optimizer) -> optax.Schedule:
    """Step (from 0) -> learning rate. Warm-up ends at the peak on step warmup_steps; step 0 already learns."""
    warmup = optax.linear_schedule(o.learning_rate / (o.warmup_steps + 1), o.learning_rate, o.warmup_steps)
    return optax.join_schedules([warmup, o.schedule(o)], [o.warmup_steps])


def decay_mask(params):
    """True on the leaves that decay. Layers are stacked, so names tell a matrix from a norm, not the number of axes.

    The embedding does not decay: rows that a corpus never uses, the mask token's slot among them, would shrink to
    nothing, and a slot near zero explodes the gradients of the conversion (reported by LLaDA2.0).
    """
    stay = ("norm", "bias", "embedding")
    return jax.tree.map_with_path(lambda path, _: not any(part in path[-1].key for part in stay), params)


def make_optimizer(o: Optimizer) -> optax.GradientTransformation:
    """Its gradient transformation; the state is float32 because the parameters are."""
    clip = optax.clip_by_global_norm(o.clip_norm) if o.clip_norm > 0 else optax.identity()
    betas, decay = dict(b1=o.beta1, b2=o.beta2), dict(weight_decay=o.weight_decay, mask=decay_mask)
    return optax.chain(clip, optax.adamw(make_schedule(o), eps=o.eps, **betas, **decay))
