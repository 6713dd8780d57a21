"""What every noise that a config may name can do."""

import pytest

from edlm_jax.diffusion.registry import NOISES


@pytest.mark.parametrize("name", NOISES)
def test_a_noise_becomes_that_of_a_model(name):
    """A config is read before its model: the mask token and the vocabulary are told later, all the way down."""
    assert NOISES[name](0, 1, 0.3).of_model(7, 99) == NOISES[name](7, 99, 0.3)
