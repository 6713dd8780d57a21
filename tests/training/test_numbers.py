"""Seed, learning rates and half-life are arguments of the compiled step: other numbers, the same program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edlm_jax.training.config import default_config
from edlm_jax.training.objective import Objective
from edlm_jax.training.optimizer import make_optimizer
from edlm_jax.training.step import Numbers, TrainState, make_eval_step, make_train_step
from tests.training.test_step import Table
from tests.training.tiny import MASK_ID, random_batch

BATCH = jax.tree.map(jnp.asarray, random_batch(8, 32, documents=(20, 12)))
CHANGES = [
    {"seed": 11},
    {"optimizer.learning_rate": 0.02, "optimizer.final_learning_rate": 0.01},
    {"objective.half_life": 0.5},
    {"objective.half_life": float("inf")},
]


def make_config(changes):
    c = default_config()
    c.steps = 4
    c.objective.update(pattern="block_causal", block_length=8)
    c.optimizer.update(learning_rate=0.1, warmup_steps=1)
    c.update_from_flattened_dict(changes)
    return c


def start(c):
    """(graph definition, objective, first state)."""
    graphdef, state = nnx.split(Table())
    params = nnx.to_pure_dict(state)
    state = TrainState(jnp.int32(0), params, make_optimizer(c).init(params))
    return graphdef, Objective.of(c.objective, MASK_ID, 97), state


def make_step(c):
    graphdef, objective, state = start(c)
    return make_train_step(c, graphdef, objective, jax.tree.map(lambda x: x.sharding, state))


def two_steps(train_step, c, *numbers):
    """The metrics of the second step."""
    _, _, state = start(c)
    for _ in range(2):
        state, metrics = train_step(state, BATCH, *numbers, block_length=8)
    return jax.device_get(metrics)


def test_one_program_serves_all_numbers_and_gives_what_constants_give():
    shared = make_step(make_config({}))
    first = two_steps(shared, make_config({}), Numbers.from_config(make_config({})))
    programs, losses = shared._cache_size(), [first["loss"]]
    for changes in CHANGES:
        c = make_config(changes)
        losses.append(two_steps(shared, c, Numbers.from_config(c))["loss"])
    assert len(set(map(float, losses))) == 1 + len(CHANGES)  # every number mattered
    c = make_config(CHANGES[0] | CHANGES[1] | CHANGES[2])
    constant, argument = two_steps(make_step(c), c), two_steps(shared, c, Numbers.from_config(c))
    for name in constant:
        np.testing.assert_allclose(argument[name], constant[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert shared._cache_size() == programs


@pytest.mark.parametrize("half_life", [None, 0.0])
def test_other_kinds_of_noise_are_other_programs(half_life):
    c = make_config({})
    with c.ignore_type():
        c.objective.half_life = half_life
    objective = Objective.of(c.objective, MASK_ID, 97)
    assert Numbers.from_config(c).objective(objective) == objective


def test_held_out_noise_follows_from_the_seed():
    c = make_config({})
    graphdef, objective, state = start(c)
    counts = []
    for seed in (0, 0, 3):
        c.seed = seed
        sums, _ = make_eval_step(c, graphdef, objective)(state.params, BATCH, np.int32(0))
        counts.append(np.asarray(sums["diffusion"]["bin_count"]).tolist())
    assert counts[0] == counts[1] != counts[2]
