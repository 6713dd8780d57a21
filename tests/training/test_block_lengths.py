"""The block length of a step follows from the seed and the step."""

import pytest

from edlm_jax.diffusion.streams import find_layout
from edlm_jax.errors import InputError
from edlm_jax.training.block_lengths import BlockLengths
from edlm_jax.training.config import default_config


def lengths(pattern="clean_context", **changes):
    o = default_config().objective
    o.update(pattern=pattern, **changes)
    return BlockLengths.of(o, find_layout(pattern, o.block_length), 96)


def test_random_ones_are_drawn():
    assert lengths().at(0, 7) == 16 and not lengths().several
    drawn = lambda seed: [lengths(random_block_lengths=(4, 8, 16)).at(seed, step) for step in range(40)]  # noqa: E731
    assert set(drawn(0)) == {4, 8, 16} and drawn(0) == drawn(0) != drawn(1)


def test_a_curriculum_goes_by_its_stages_and_then_on():
    assert [lengths(curriculum=((2, 3), (6, 2))).at(0, step) for step in range(7)] == [2, 2, 2, 6, 6, 16, 16]
    assert lengths("causal", curriculum=((2, 3),)).at(0, 0) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (dict(curriculum=((5, 3),)), "blocks of 5 do not divide config.data.length=96"),
        (dict(curriculum=((6, 3),), noisy_length=32), "blocks of 6 do not divide config.objective.noisy_length=32"),
        (dict(curriculum=((2, 0),)), r"curriculum: \(2, 0\) is not \(block length, steps\)"),
        (dict(curriculum=(2,)), "curriculum: 2 is not"),
        (dict(curriculum=((2, 3),), pattern="bidirectional"), "curriculum means nothing under pattern='bidirectional'"),
        (dict(curriculum=((32, 3),), group=2), "groups of 2 blocks of 32 do not divide config.data.length=96"),
        (dict(group=4), "groups of 4 blocks of 16 do not divide config.data.length=96"),
        (dict(random_block_lengths=(5,)), "5 is not a divisor of block_length=16"),
    ],
    ids=str,
)
def test_what_no_row_has_is_refused(changes, reason):
    with pytest.raises(InputError, match=reason):
        lengths(**changes)
