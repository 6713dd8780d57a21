"""The choice by load is the best of what was measured."""

import pytest

from edlm_jax.decoding.load import Pace, Yields, choose

# A forward of blocks costs what two of AR cost, while one row is there, and four times that with eight.
AR = Pace({1: 1.0, 8: 2.0}, {1: 1.0, 8: 2.0}, 0)
BLOCKS = Pace({1: 2.0, 8: 8.0}, {1: 3.0, 8: 14.0}, 4)


def test_the_most_tokens_a_second_win():
    assert [choose([0, 1], rows, [AR, BLOCKS], [1.0, 3.0]) for rows in (1, 2, 8, 50)] == [1, 0, 0, 0]
    assert choose([1], 1, [AR, BLOCKS], [1.0, 2.0]) == 1
    assert choose([0, 1], 1, [AR, BLOCKS], [1.0, 2.0]) == 0  # half of the forwards commit: 2.5 seconds for 2 tokens


def test_a_forward_is_wide_when_any_row_commits():
    assert BLOCKS.seconds(1, 2.0) == pytest.approx(2.5)
    assert BLOCKS.seconds(2, 2.0) == pytest.approx(8 + 6 * 0.75)
    assert BLOCKS.seconds(1, 9.0) == pytest.approx(3.0)
    assert AR.seconds(3, 1.0) == 2.0


def test_what_rows_show_outweighs_the_guess_and_fades():
    found = Yields([7, 1])
    assert found.means == [4, 1]
    for _ in range(100):
        found.add(0, 200, 100)
    assert found.means == [pytest.approx(2, abs=0.05), 1]
    for _ in range(10000):
        found.add(1, 100, 100)
    assert found.means == [pytest.approx(4, abs=0.01), 1]
