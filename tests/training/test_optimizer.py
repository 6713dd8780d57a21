import jax
import numpy as np
import pytest
from flax import nnx

from edlm_jax.training.optimizer import SCHEDULES, Optimizer, decay_mask, make_optimizer, make_schedule
from tests.training.tiny import random_model


def make(schedule="constant", **changes) -> Optimizer:
    """With 10 steps of warm-up to 1e-2."""
    rates = dict(learning_rate=1e-2, final_learning_rate=1e-3, warmup_steps=10, decay_steps=0)
    adamw = dict(beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0, accumulation=1)
    return Optimizer(steps=100, schedule=SCHEDULES[schedule], **rates | adamw | changes)


def rates(steps, **changes):
    return [float(make_schedule(make(**changes))(step)) for step in steps]


def test_schedules():
    warmup = [1e-2 / 11, 1e-2 * 6 / 11, 1e-2]
    assert rates([0, 5, 10], schedule="cosine") == pytest.approx(warmup)
    assert rates([55, 100, 200], schedule="cosine") == pytest.approx([5.5e-3, 1e-3, 1e-3])
    wsd = rates([0, 5, 10, 79, 80, 90, 100], schedule="wsd", decay_steps=20)
    assert wsd == pytest.approx([*warmup, 1e-2, 1e-2, 5.5e-3, 1e-3])
    assert rates([0, 5, 10, 99], schedule="constant") == pytest.approx([*warmup, 1e-2])


def test_decay_is_for_matrices():
    model = random_model(tie_word_embeddings=False, attention_bias=True)
    params = nnx.to_pure_dict(nnx.state(model))
    decayed = {path[-1].key for path, on in jax.tree_util.tree_leaves_with_path(decay_mask(params)) if on}
    assert decayed == {"q_DNH", "k_DKH", "v_DKH", "o_NHD", "gate_DF", "up_DF", "down_FD", "head_DV"}


def test_clip_is_by_the_global_norm():
    params = {"a_DF": np.ones((3, 4), np.float32), "b_norm_D": np.ones(3, np.float32)}
    grads = jax.tree.map(lambda x: 100 * x, params)
    moments = []
    for clip_norm in (1.0, 0.0):
        optimizer = make_optimizer(make(clip_norm=clip_norm))
        _, state = optimizer.update(grads, optimizer.init(params), params)
        moments.append(np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(state[1][0].mu))))
    assert moments == pytest.approx([0.1 * 1.0, 0.1 * 100 * 15**0.5])
