"""The chunked loss equals the dense one, value and gradients, at odd sizes and on meshes; it never forms the logits."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from edlm_jax.models.column_losses import CrossEntropy
from edlm_jax.models.head import best_tokens, column_loss
from tests.seeds import fresh_rng


def linear_cross_entropy(x_BTD, head_DV, targets_BT, supervised_BT):
    return column_loss(CrossEntropy(), x_BTD, head_DV, supervised_BT, targets_BT=targets_BT)[0]


def dense(x_BTD, head_DV, targets_BT, supervised_BT):
    logits_BTV = jnp.einsum("BTD,DV->BTV", x_BTD, head_DV.astype(x_BTD.dtype), preferred_element_type=jnp.float32)
    ce_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, targets_BT)
    return jnp.where(supervised_BT, ce_BT, 0)


def random_case(B, T, D, V, share=0.5):
    rng = fresh_rng()
    x_BTD, head_DV = jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32), rng.normal(size=(D, V))
    supervised_BT = rng.random((B, T)) < share * rng.uniform(0.2, 1.8, (B, 1))  # rows differ
    return x_BTD, jnp.asarray(head_DV, jnp.float32), rng.integers(0, V, (B, T)), supervised_BT


def value_and_grad(function, case, weight_BT):
    def objective(x_BTD, head_DV):
        ce_BT = function(x_BTD, head_DV, *case[2:])
        return (ce_BT * weight_BT).sum(), ce_BT

    (_, ce_BT), grads = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))(*case[:2])
    return ce_BT, *grads


def check(case, mesh_shape=None, **tolerance):
    weight_BT = jnp.asarray(fresh_rng().normal(size=case[2].shape), jnp.float32)
    expected = value_and_grad(dense, case, weight_BT)
    if mesh_shape is None:
        ours = value_and_grad(linear_cross_entropy, case, weight_BT)
    else:
        mesh = jax.make_mesh(mesh_shape, ("data", "fsdp", "tensor", "context"), axis_types=(AxisType.Auto,) * 4)
        with jax.set_mesh(mesh):
            ours = value_and_grad(linear_cross_entropy, case, weight_BT)
    for name, a, b in zip(("ce", "dx", "dhead"), ours, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(np.float32(a), np.float32(b), **tolerance, err_msg=name)


@pytest.mark.parametrize("B, T, D, V", [(3, 37, 5, 131), (1, 1, 4, 7), (2, 64, 8, 2049)])
@pytest.mark.parametrize("share", [0.0, 0.5, 10.0])
def test_equals_the_dense_loss(B, T, D, V, share):
    check(random_case(B, T, D, V, share), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("mesh_shape", "D", "V"),
    [
        ((1, 4, 1, 1), 8, 131),
        ((2, 1, 2, 1), 8, 132),
        ((1, 2, 2, 1), 8, 131),  # an odd vocabulary stays whole
        ((2, 2, 1, 1), 7, 131),  # so does an odd width
        ((1, 2, 1, 2), 8, 131),
    ],
)
def test_equals_the_dense_loss_on_a_mesh(mesh_shape, D, V):
    check(random_case(4, 26, D, V), mesh_shape, atol=2e-5, rtol=2e-5)


def test_rows_that_do_not_divide_over_the_mesh():
    check(random_case(3, 26, 8, 131), (1, 2, 2, 1), atol=2e-5, rtol=2e-5)


def test_the_heads_gradient_is_summed_in_float32():
    """bfloat16 products, yet 2000 equal contributions do not stall: in bfloat16 256 + 1 is 256."""
    x_BTD, head_DV = jnp.ones((1, 2000, 1), jnp.bfloat16), jnp.zeros((1, 3), jnp.float32)
    rest = np.zeros((1, 2000), int), np.ones((1, 2000), bool)
    gradient_DV = jax.jit(jax.grad(lambda head_DV: linear_cross_entropy(x_BTD, head_DV, *rest).sum()))(head_DV)
    assert gradient_DV.dtype == jnp.float32
    np.testing.assert_allclose(gradient_DV, 2000 * np.array([[-2 / 3, 1 / 3, 1 / 3]]), rtol=4e-3)


def test_logits_never_exist_as_a_whole():
    case = random_case(2, 64, 8, 2049)
    weight_BT = jnp.ones((2, 64))

    def widest(function):
        """Most logits that one tensor of the compiled gradient holds."""
        objective = lambda x, head: (function(x, head, *case[2:]) * weight_BT).sum()  # noqa: E731
        text = jax.jit(jax.grad(objective, argnums=(0, 1))).lower(*case[:2]).compile().as_text()
        shapes = [np.array(dims.split(","), int) for dims in re.findall(r"f32\[([\d,]+)\]", text)]
        return max(shape.prod() for shape in shapes if 2049 in shape and 8 not in shape[:-1])

    assert widest(dense) == 2 * 64 * 2049  # the text does show them where they are
    assert widest(linear_cross_entropy) == 2 * 8 * 2049


@pytest.mark.parametrize("mesh_shape", [(1, 1, 1, 1), (1, 2, 2, 1), (2, 1, 2, 1), (1, 2, 1, 2)], ids=str)
@pytest.mark.parametrize("count", [1, 5, 70, 132])  # more than half of the vocabulary, and all of it
def test_the_best_tokens_are_those_of_all_logits(mesh_shape, count):
    x_BTD, head_DV, _, wanted_BT = random_case(4, 26, 8, 132)
    devices = jax.devices()[: np.prod(mesh_shape)]
    axes = ("data", "fsdp", "tensor", "context")
    with jax.set_mesh(jax.make_mesh(mesh_shape, axes, axis_types=(AxisType.Auto,) * 4, devices=devices)):
        found = jax.jit(lambda x, head, wanted: best_tokens(x, head, wanted, count))(x_BTD, head_DV, wanted_BT)
    values_NK, tokens_NK = (np.asarray(part)[wanted_BT] for part in found)
    logits_NV = np.einsum("BTD,DV->BTV", x_BTD, head_DV)[wanted_BT]
    # two logits may differ by less than a sum's rounding, so a token is judged by its logit and not by its name
    np.testing.assert_allclose(values_NK, -np.sort(-logits_NV, axis=-1)[:, :count], atol=1e-5)
    np.testing.assert_allclose(values_NK, np.take_along_axis(logits_NV, tokens_NK, axis=-1), atol=1e-5)
    assert all(len(set(row)) == count for row in tokens_NK)


def test_the_best_tokens_are_found_a_chunk_at_a_time():
    x_BTD, head_DV, _, wanted_BT = random_case(2, 64, 8, 2049, share=10)
    text = jax.jit(lambda *args: best_tokens(*args, 16)).lower(x_BTD, head_DV, wanted_BT).compile().as_text()
    shapes = [np.array(dims.split(","), int) for dims in re.findall(r"f32\[([\d,]+)\]", text)]
    assert max(shape.prod() for shape in shapes if 2049 in shape and len(shape) > 1) <= 2 * 8 * 2049


def test_chunks_without_supervision_are_not_computed():
    """NaN in a hidden state that nothing asks for reaches neither loss nor gradient."""
    x_BTD, head_DV, targets_BT, _ = random_case(2, 64, 8, 31)
    supervised_BT = np.arange(64)[None] % 16 < np.array([[3], [1]])  # 12 and 4 columns: two chunks of eight
    poisoned = x_BTD.at[:, 60].set(jnp.nan)
    gradient = jax.grad(lambda head: linear_cross_entropy(poisoned, head, targets_BT, supervised_BT).sum())(head_DV)
    expected = jax.grad(lambda head: linear_cross_entropy(x_BTD, head, targets_BT, supervised_BT).sum())(head_DV)
    np.testing.assert_array_equal(gradient, expected)
