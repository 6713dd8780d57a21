"""What every noise that a config may name can do."""

import pytest
from ml_collections import ConfigDict

from edlm_jax.diffusion.registry import NOISES


@pytest.mark.parametrize("name", NOISES)
def test_a_noise_becomes_that_of_a_model(name, tmp_path):
    """A config is read before its model: the mask token and the vocabulary are told later, all the way down."""
    states = tmp_path / "own.jsonl"
    states.write_text('{"accepted_at": [1, 2]}\n')
    o = ConfigDict(dict(half_life=0.3, states=str(states), block_length=4, group=3))
    assert NOISES[name](0, 1, o).of_model(7, 99) == NOISES[name](7, 99, o)
