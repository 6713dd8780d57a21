"""The best token of a position."""

import jax
import numpy as np
import pytest

from edlm_jax.decoding.sampling import Draw, RowDraw, RowSampling, best_token
from tests.seeds import fresh_rng


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 1), (2, 3, 50), (1, 2, 1000)])
def test_it_is_the_first_of_the_highest(shape):
    rng = fresh_rng()
    scores = rng.integers(0, 5, shape).astype(np.float32)  # many are equal
    scores[rng.random(shape) < 0.3] = -np.inf
    for x in (scores, np.full(shape, -np.inf, np.float32)):
        np.testing.assert_array_equal(jax.jit(best_token)(x), np.argmax(x, axis=-1))


def test_of_nans_it_is_a_token():
    assert best_token(np.full((1, 4), np.nan, np.float32)) == 3


def test_the_least_top_p_leaves_the_best_token():
    """Of those that float32 rounds to 0, too."""
    logits, keys = np.float32([[[1, 3, 2]]]), jax.vmap(jax.vmap(jax.random.key))(np.zeros((1, 1), np.uint32))
    number = lambda value: np.full((1, 1, 1), value, np.float32)  # noqa: E731
    assert Draw(False, top_p=1e-50).choose(logits, keys, 1.0) == 1
    assert RowDraw().choose(logits, keys, RowSampling(number(1), np.zeros((1, 1, 1), np.int32), number(1e-50))) == 1
