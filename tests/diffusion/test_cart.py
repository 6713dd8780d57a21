"""A masked token's weight by what is near it, against the sum spelled out."""

import numpy as np
import pytest

from edlm_jax.diffusion import Corruption
from edlm_jax.errors import InputError
from tests.training.test_objective import Lookup, metrics_of, random_corruption
from tests.training.tiny import make_objective, random_batch

P = 0.1


def test_weights_equal_the_sum_over_what_is_there():
    objective = make_objective(context_adaptive_weight=0.5, diffusion_weight=0.0, pattern="bidirectional")
    batch, model = random_batch(3, 16, documents=(5, 9)), Lookup()
    corruption = random_corruption(batch)

    metrics = metrics_of(objective, model, batch, Corruption(*corruption))
    log_p_BLV = model.log_probs(corruption.noisy_BM)
    total = 0.0
    for row, n in zip(*np.nonzero(corruption.masked_BM), strict=True):
        segments = batch["segment_ids"][row]
        near = [i for i in range(16) if segments[i] == segments[n] and not corruption.masked_BM[row, i]]
        weight = sum(P * (1 - P) ** (abs(n - i) - 1) for i in near) / 2
        total -= weight * log_p_BLV[row, n, batch["tokens"][row, n]]
    expected = total / corruption.masked_BM.sum()
    assert expected > 0
    np.testing.assert_allclose(metrics["context_adaptive_loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], 0.5 * expected, rtol=1e-5)


@pytest.mark.parametrize("pattern", ["block_causal", "clean_context"])
def test_patterns_that_do_not_see_both_sides_are_refused(pattern):
    with pytest.raises(InputError, match="needs pattern='bidirectional'"):
        make_objective(context_adaptive_weight=1.0, pattern=pattern)
