"""The jitted step on a model of one table: what does not depend on the model."""


import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edlm_jax.models.column_losses import CrossEntropy
from edlm_jax.models.head import column_loss
from edlm_jax.training.metrics import step_flops
from edlm_jax.training.optimizer import make_optimizer
from edlm_jax.training.step import Numbers, TrainState, make_train_step
from tests.training.test_optimizer import make as make_adamw
from tests.training.tiny import make_objective, random_batch, random_model


class Table(nnx.Module):
    """Logits of a column from its token and the one before it."""

    def __init__(self):
        rng = np.random.default_rng(5)
        self.embedding_VD = nnx.Param(jnp.asarray(rng.normal(size=(97, 5)), jnp.float32))
        self.head_DV = nnx.Param(jnp.asarray(rng.normal(size=(5, 97)), jnp.float32))

    def hidden(self, tokens_BT, **_):
        x_BTD = self.embedding_VD[...][tokens_BT]
        return x_BTD + jnp.roll(x_BTD, 1, axis=1)

    def cross_entropy(self, x_BTD, targets_BT, supervised_BT):
        return column_loss(CrossEntropy(), x_BTD, self.head_DV[...], supervised_BT, targets_BT=targets_BT)[0]


@pytest.fixture(scope="module")
def run_steps():
    """accumulation -> (state, metrics of each step) after two steps on one batch whose rows weigh differently."""
    batch = random_batch(8, 32, documents=(20, 12))
    batch["loss_mask"][:3] = 0
    batch["loss_mask"][0, 5] = 1

    def run(accumulation, first_step=0):
        optimizer = make_adamw(accumulation=accumulation, learning_rate=0.1, clip_norm=1e-3, warmup_steps=0)
        graphdef, state = nnx.split(Table())
        params = nnx.to_pure_dict(state)
        state = TrainState(jnp.int32(first_step), params, make_optimizer(optimizer).init(params))
        objective = make_objective(pattern="semi_block", ar_weight=1.0, diffusion_weight=0.3)
        shardings, numbers = jax.tree.map(lambda x: x.sharding, state), Numbers.of(0, optimizer, 0.1)
        train_step = make_train_step(graphdef, objective, optimizer, shardings)
        metrics = []
        for _ in range(2):
            state, measured = train_step(state, jax.tree.map(jnp.asarray, batch), numbers, block_length=4)
            metrics.append(jax.device_get(measured))
        return jax.device_get(state), metrics

    return run


def test_accumulation_changes_nothing(run_steps):
    state, metrics = run_steps(1)
    assert state.step == 2
    for accumulation in (2, 4):
        other_state, other_metrics = run_steps(accumulation)
        for ours, theirs in zip(metrics, other_metrics, strict=True):
            np.testing.assert_array_equal(ours["bin_count"], theirs["bin_count"])  # the same noise
            assert ours.keys() == theirs.keys()
            for name in ours:
                np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, err_msg=name)
        for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(other_state.params), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_noise_is_of_the_step(run_steps):
    _, (first, second) = run_steps(1)
    _, (again, _) = run_steps(1, first_step=1)
    assert np.any(first["bin_count"] != second["bin_count"])
    np.testing.assert_array_equal(again["bin_count"], second["bin_count"])


@pytest.mark.parametrize("pattern", ["causal", "bidirectional", "block_causal", "clean_context", "semi_block"])
def test_attended_pairs_are_those_of_the_pattern(pattern):
    L, C = 24, 4
    layout = make_objective(pattern=pattern, block_length=C).layout
    T = layout.columns(L)
    assert T == L * (1 + (pattern in ("clean_context", "semi_block")))
    assert layout.pairs(L) == layout.pattern(L).dense(T, T).sum()


def test_attended_pairs_of_two_views():
    L, C = 24, 4
    for changes in (dict(noisy_length=2 * L), dict(noise="complementary")):
        layout = make_objective(block_length=C, **changes).layout
        assert layout.pairs(L) == layout.pattern(L).dense(3 * L, 3 * L).sum()


def test_step_flops_by_hand():
    spec = random_model().spec
    objective = make_objective()
    matrices = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48)  # 2 layers: q, o, k, v, and the FFN
    forward = 2 * (2 * 24) * matrices + 2 * 24 * 32 * 97 + 2 * 4 * 32 * (24 * 24 + 24 * 4)
    assert step_flops(spec, objective, rows=3, length=24) == 3 * 3 * forward
    fewer = make_objective(noisy_length=8)
    forward = 2 * (8 + 24) * matrices + 2 * 8 * 32 * 97 + 2 * 4 * 32 * ((8 + 24) * (24 + 4) // 2)
    assert step_flops(spec, fewer, rows=3, length=24) == 3 * 3 * forward
