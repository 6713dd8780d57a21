"""The mean of ce over masked tokens, whatever their noise level, by the names of metrics and config."""

import numpy as np

from edlm_jax.diffusion import Corruption
from tests.training.test_objective import Lookup, metrics_of, random_corruption
from tests.training.tiny import make_objective, random_batch


def test_every_masked_token_counts_the_same():
    objective = make_objective(cross_entropy_weight=0.5, diffusion_weight=0.0, pattern="block_causal")
    batch, model = random_batch(3, 16, documents=(5, 8)), Lookup()
    corruption = random_corruption(batch)

    metrics = metrics_of(objective, model, batch, Corruption(*corruption))
    log_p_BLV = model.log_probs(corruption.noisy_BM)
    ce_BL = -np.take_along_axis(log_p_BLV, batch["tokens"][..., None], axis=2)[..., 0]
    expected = ce_BL[corruption.masked_BM].mean()
    np.testing.assert_allclose(metrics["cross_entropy_loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], 0.5 * expected, rtol=1e-5)
