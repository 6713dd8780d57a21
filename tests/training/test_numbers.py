"""Seed, learning rates and half-life are arguments of the compiled step: other numbers, the same program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edlm_jax.training.config import default_config
from edlm_jax.training.initial import planned_spec
from edlm_jax.training.optimizer import make_optimizer
from edlm_jax.training.run import Run
from edlm_jax.training.step import TrainState, make_eval_step, make_train_step
from tests.training.test_step import Table
from tests.training.tiny import HF_CONFIG, MASK_ID, random_batch

BATCH = jax.tree.map(jnp.asarray, random_batch(8, 32, documents=(20, 12)))
CHANGES = [
    {"seed": 11},
    {"optimizer.learning_rate": 0.02, "optimizer.final_learning_rate": 0.01},
    {"objective.half_life": 0.5},
    {"objective.half_life": float("inf")},
]


def make_run(changes=()) -> Run:
    c = default_config()
    c.init.update(hf_config=HF_CONFIG, mask_token_id=MASK_ID)
    c.steps = 4
    c.objective.update(pattern="block_causal", block_length=8)
    c.optimizer.update(learning_rate=0.1, warmup_steps=1)
    with c.ignore_type():
        c.update_from_flattened_dict(dict(changes))
    return Run.of(c)


def start(run):
    """(graph definition, objective, first state)."""
    graphdef, state = nnx.split(Table())
    params = nnx.to_pure_dict(state)
    state = TrainState(jnp.int32(0), params, make_optimizer(run.optimizer).init(params))
    return graphdef, run.objective.of_model(planned_spec(run.start)), state


def make_step(run):
    graphdef, objective, state = start(run)
    return make_train_step(graphdef, objective, run.optimizer, jax.tree.map(lambda x: x.sharding, state))


def two_steps(train_step, run):
    """The metrics of the second step."""
    _, _, state = start(run)
    for _ in range(2):
        state, metrics = train_step(state, BATCH, run.numbers, block_length=8)
    return jax.device_get(metrics)


def test_one_program_serves_all_numbers_and_gives_what_constants_give():
    shared = make_step(make_run())
    first = two_steps(shared, make_run())
    programs, losses = shared._cache_size(), [first["loss"]]
    for changes in CHANGES:
        losses.append(two_steps(shared, make_run(changes))["loss"])
    assert len(set(map(float, losses))) == 1 + len(CHANGES)  # every number mattered
    run = make_run(CHANGES[0] | CHANGES[1] | CHANGES[2])
    program = make_step(run)
    baked = jax.jit(lambda state, batch: program(state, batch, run.numbers, block_length=8))
    constant = two_steps(lambda state, batch, _, block_length: baked(state, batch), run)
    argument = two_steps(shared, run)
    for name in constant:
        np.testing.assert_allclose(argument[name], constant[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert shared._cache_size() == programs


@pytest.mark.parametrize("half_life", [None, 0.0])
def test_other_kinds_of_noise_are_other_programs(half_life):
    run = make_run({"objective.half_life": half_life})
    assert run.numbers.objective(run.objective) == run.objective


def test_held_out_noise_follows_from_the_seed():
    graphdef, objective, state = start(make_run())
    counts = []
    for seed in (0, 0, 3):
        eval_step = make_eval_step(graphdef, objective, make_run({"seed": seed}).numbers)
        sums, _ = eval_step(state.params, BATCH, np.int32(0))
        counts.append(np.asarray(sums["diffusion"]["bin_count"]).tolist())
    assert counts[0] == counts[1] != counts[2]
