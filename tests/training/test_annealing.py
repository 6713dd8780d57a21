"""Attention that grows from causal to both ways while a run trains (DiffuLLaMA), asked of the model who sees whom."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edlm_jax.attention import Bidirectional, Causal
from edlm_jax.errors import InputError
from edlm_jax.training.config import default_config
from edlm_jax.training.objective import no_noise
from edlm_jax.training.optimizer import make_optimizer
from edlm_jax.training.run import Run
from edlm_jax.training.step import Numbers, TrainState, make_train_step
from tests.seeds import fresh_rng
from tests.training.test_optimizer import make as make_adamw
from tests.training.tiny import HF_CONFIG, make_objective, random_batch, random_model

BOTH_WAYS = dict(pattern="bidirectional", alignment="shifted", half_life=None)
ANNEALED = make_objective(**BOTH_WAYS, anneal_steps=8)
LENGTH = 32
WINDOWS = dict(architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=5)


def drawn_key():
    return jax.random.key(fresh_rng().integers(2**31))


def hidden(objective, model, batch):
    return np.asarray(objective.hidden(model, batch, no_noise(batch)))


def who_sees_whom(objective, model, batch, row=0):
    """bool[T, T] of a row: a query of one layer sees a key if another token there changes what it comes to."""
    plain = hidden(objective, model, batch)[row]
    seen_TT = np.zeros((LENGTH, LENGTH), bool)
    for key in range(LENGTH):
        tokens = batch["tokens"].copy()
        tokens[row, key] = (tokens[row, key] + 1) % 90
        seen_TT[:, key] = np.any(hidden(objective, model, batch | dict(tokens=tokens))[row] != plain, axis=-1)
    return seen_TT


@pytest.fixture(scope="module")
def one_layer():
    return random_model(num_hidden_layers=1), random_batch(2, LENGTH, documents=(LENGTH,))


@pytest.mark.parametrize("step", [0, 3, 6, 8, 100])
def test_a_share_of_later_tokens_is_seen(one_layer, step):
    model, batch = one_layer
    objective = ANNEALED.at_step(drawn_key(), jnp.int32(step))
    seen_TT = who_sees_whom(objective, model, batch)
    assert seen_TT[np.tril_indices(LENGTH)].all()
    later, share = seen_TT[np.triu_indices(LENGTH, 1)], min(step / 8, 1)
    assert abs(later.mean() - share) <= 4.5 * np.sqrt(share * (1 - share) / later.size)
    np.testing.assert_array_equal(who_sees_whom(objective, model, batch, row=1), seen_TT)  # one draw for all rows
    again = who_sees_whom(ANNEALED.at_step(drawn_key(), jnp.int32(step)), model, batch)
    assert np.array_equal(again, seen_TT) == (share in (0, 1))


def test_documents_stay_apart(one_layer):
    model, _ = one_layer
    batch = random_batch(1, LENGTH, documents=(11, 21))
    seen_TT = who_sees_whom(ANNEALED.at_step(drawn_key(), jnp.int32(4)), model, batch)
    same_TT = batch["segment_ids"][0][:, None] == batch["segment_ids"][0][None]
    assert not seen_TT[~same_TT].any()
    assert 0 < seen_TT[same_TT & ~np.tri(LENGTH, dtype=bool)].mean() < 1


@pytest.mark.parametrize(("step", "pattern"), [(0, Causal()), (8, Bidirectional())])
@pytest.mark.parametrize("changes", [{}, WINDOWS])
def test_its_ends_are_the_patterns(step, pattern, changes):
    model, batch = random_model(**changes), random_batch(2, LENGTH, documents=(20, 12))
    objective = ANNEALED.at_step(drawn_key(), jnp.int32(step))
    inputs = objective.streams(batch, no_noise(batch)).inputs
    expected = model.hidden(pattern=pattern, **inputs)
    np.testing.assert_allclose(hidden(objective, model, batch), expected, rtol=2e-4, atol=2e-5)


def test_a_step_is_annealed_by_its_number():
    """Whatever its micro-batches and what it computes again; what is measured is not."""
    batch = jax.tree.map(jnp.asarray, random_batch(4, LENGTH, documents=(20, 12)))
    graphdef, state = nnx.split(random_model())
    params = nnx.to_pure_dict(state)

    def loss(objective, step, accumulation=1, remat="none"):
        optimizer = make_adamw(accumulation=accumulation, warmup_steps=0)
        state = TrainState(jnp.int32(step), jax.tree.map(jnp.copy, params), make_optimizer(optimizer).init(params))
        shardings, numbers = jax.tree.map(lambda x: x.sharding, state), Numbers.of(0, optimizer, None)
        train_step = make_train_step(graphdef, objective, optimizer, shardings, remat=remat)
        return float(train_step(state, batch, numbers, block_length=4)[1]["loss"])

    both_ways = make_objective(**BOTH_WAYS)
    assert loss(ANNEALED, 8) == pytest.approx(loss(both_ways, 8), rel=1e-5)
    half = loss(ANNEALED, 4)
    assert abs(half - loss(both_ways, 4)) > 1e-3
    for how in (dict(accumulation=2), dict(remat="full")):
        assert loss(ANNEALED, 4, **how) == pytest.approx(half, rel=1e-5)


def test_it_needs_attention_both_ways_and_whole_rows():
    with pytest.raises(InputError, match="needs pattern='bidirectional', not 'clean_context'"):
        make_objective(anneal_steps=8)
    c = default_config()
    c.init.update(hf_config=HF_CONFIG, mask_token_id=92)
    with c.ignore_type():
        c.objective.update(BOTH_WAYS | dict(anneal_steps=8))
    c.mesh.update(fsdp=1, context=2)
    with pytest.raises(InputError, match="needs config.mesh.context=1"):
        Run.of(c).make_mesh(jax.devices()[:2])
