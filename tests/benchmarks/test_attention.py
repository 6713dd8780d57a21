"""What attention alone is timed against: the whole mask, which must give the same."""

import jax
import numpy as np
import pytest

from edlm_jax.benchmarks.attention import (
    attend_masked,
    forward_and_backward,
    random_arrays,
    take_turns,
    whole_mask,
)
from edlm_jax.benchmarks.training import packed_batch
from edlm_jax.diffusion import example_keys
from tests.attention.planned import attend
from tests.seeds import fresh_rng
from tests.training.tiny import make_objective


@pytest.mark.parametrize("noisy_length", [0, 24])
def test_the_whole_mask_is_what_the_trainer_sees(noisy_length):
    seed = int(fresh_rng().integers(1 << 30))
    objective = make_objective(noisy_length=noisy_length)
    batch = packed_batch(99, 2, 48, 4)
    noise = objective.corrupt(example_keys(jax.random.key(seed), 2), batch)
    segments_BT, pattern = objective.streams(batch, noise).inputs["segment_ids_BT"], objective.layout.pattern(48)
    mask_BTT = whole_mask(pattern, segments_BT, noise.copies_BM)
    arrays = random_arrays(2, mask_BTT.shape[1], 4, 2, 8, "float32")
    segments = dict(q_segments_BT=segments_BT, k_segments_BS=segments_BT, copies_BM=noise.copies_BM)
    ours = forward_and_backward(lambda q, k, v: attend(q, k, v, pattern=pattern, **segments))(*arrays)
    dense = forward_and_backward(lambda q, k, v: attend_masked(q, k, v, mask_BTS=mask_BTT))(*arrays)
    for one, other in zip(ours, dense, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, err_msg=f"{seed=}")


def test_a_program_that_fails_says_so_and_the_others_count():
    def fails():
        raise RuntimeError("RESOURCE_EXHAUSTED: out of\nmemory")

    found = take_turns({"fails": fails, "works": lambda: 1}, 3)
    assert found["fails"] == {"error": "RESOURCE_EXHAUSTED: out of memory"}
    assert 0 <= found["works"]["fastest"] <= found["works"]["milliseconds"]
