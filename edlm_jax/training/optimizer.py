"""AdamW with warm-up and a schedule, global-norm clipping, and decay on matrices alone."""

import jax
import optax
from ml_collections import ConfigDict


def make_schedule(c: ConfigDict, peak=None, final=None) -> optax.Schedule:
    """Step (from 0) -> learning rate. Warm-up ends at the peak on step warmup_steps; step 0 already learns.

    `peak` and `final` stand for those of the config, so that a compiled step may take them as arguments.
    """
    o = c.optimizer
    peak, final = (o.learning_rate, o.final_learning_rate) if peak is None else (peak, final)
    after = c.steps - o.warmup_steps
    if o.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, max(after, 1), alpha=final / peak)
    elif o.schedule == "wsd":
        decay = optax.linear_schedule(peak, final, o.decay_steps)
        main = optax.join_schedules([optax.constant_schedule(peak), decay], [after - o.decay_steps])
    else:
        main = optax.constant_schedule(peak)
    warmup = optax.linear_schedule(peak / (o.warmup_steps + 1), peak, o.warmup_steps)
    return optax.join_schedules([warmup, main], [o.warmup_steps])


def decay_mask(params):
    """True on the leaves that decay. Layers are stacked, so names tell a matrix from a norm, not the number of axes.

    The embedding does not decay: rows that a corpus never uses, the mask token's slot among them, would shrink to
    nothing, and a slot near zero explodes the gradients of the conversion (reported by LLaDA2.0).
    """

    def decays(path, _):
        name = path[-1].key
        return not any(part in name for part in ("norm", "bias", "embedding"))

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(c: ConfigDict, peak=None, final=None) -> optax.GradientTransformation:
    """The gradient transformation of c.optimizer; its state is float32 because the parameters are.

    `peak` and `final` as for `make_schedule`.
    """
    o = c.optimizer
    clip = optax.clip_by_global_norm(o.clip_norm) if o.clip_norm > 0 else optax.identity()
    schedule = make_schedule(c, peak, final)
    adamw = optax.adamw(schedule, b1=o.beta1, b2=o.beta2, eps=o.eps, weight_decay=o.weight_decay, mask=decay_mask)
    return optax.chain(clip, adamw)
