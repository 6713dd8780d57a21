"""Patterns against masks drawn token by token, and against the counts of the paper."""

import numpy as np
import pytest

from edlm_jax.attention import Bidirectional, BlockCausal, Causal, CleanContext, SlidingWindow
from edlm_jax.errors import InputError
from tests.seeds import fresh_rng


def drawn(picture):
    return np.array([[mark == "#" for mark in line.split()] for line in picture.strip().splitlines()])


def test_the_pictures_of_the_docstrings():
    assert (Causal().dense(3, 3) == drawn("# . .\n# # .\n# # #")).all()
    assert (BlockCausal(2).dense(4, 4) == drawn("# # . .\n# # . .\n# # # #\n# # # #")).all()
    assert Bidirectional().dense(3, 5).all()
    window = "# . . . .\n# # . . .\n# # # . .\n. # # # .\n. . # # #"
    assert (SlidingWindow(Causal(), 3).dense(5, 5) == drawn(window)).all()
    noisy = "# # . . . . . .\n# # . . . . . .\n. . # # # # . .\n. . # # # # . .\n"
    clean = ". . . . # # . .\n. . . . # # . .\n. . . . # # # #\n. . . . # # # #"
    assert (CleanContext(4, 2).dense(8, 8) == drawn(noisy + clean)).all()
    token_causal = ". . . . # . . .\n. . . . # # . .\n. . . . # # # .\n. . . . # # # #"
    assert (CleanContext(4, 2, "token_causal").dense(8, 8) == drawn(noisy + token_causal)).all()
    left_to_right = "# . . . . . . .\n# # . . . . . .\n. . # . # # . .\n. . # # # # . .\n"
    assert (CleanContext(4, 2, noisy="causal").dense(8, 8) == drawn(left_to_right + clean)).all()
    group = "# # . . . . . .\n# # . . . . . .\n# # # # . . . .\n# # # # . . . .\n"
    assert (CleanContext(4, 2, group=2).dense(8, 8) == drawn(group + clean)).all()


@pytest.mark.parametrize("clean", ["block_causal", "token_causal"])
def test_a_window_hides_what_is_far_in_positions(clean):
    """Whatever the stream: of a noisy column its clean one counts."""
    rng = fresh_rng()
    L, C, window = int(rng.integers(3, 20)), int(rng.integers(1, 6)), int(rng.integers(1, 9))
    pattern = CleanContext(L, C, clean)
    mask, near = pattern.dense(2 * L, 2 * L), pattern.within(window).dense(2 * L, 2 * L)
    assert pattern.within(None) == pattern and pattern.within(window) == SlidingWindow(pattern, window)
    for q in range(2 * L):
        for k in range(2 * L):
            assert near[q, k] == (mask[q, k] and abs(q % L - k % L) < window), (L, C, window, q, k)


@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize("clean", ["block_causal", "token_causal"])
def test_clean_context_says_who_may_look_token_by_token(clean, group):
    rng = fresh_rng()
    L, C = int(rng.integers(3, 20)), int(rng.integers(1, 6))  # a last short block is common here
    pattern = CleanContext(L, C, clean, group=group)
    mask = pattern.dense(2 * L, 2 * L)
    assert mask[:L].sum() == CleanContext(L, C, clean).dense(2 * L, 2 * L)[:L].sum()  # of as many blocks, other copies
    for q in range(2 * L):
        for k in range(2 * L):
            q_block, k_block = q % L // C, k % L // C
            of_group = k_block // group == q_block // group
            if q < L:
                expected = k_block <= q_block and of_group == (k < L)
            else:
                within = k % L <= q % L if clean == "token_causal" else k_block <= q_block
                expected = k >= L and within
            assert mask[q, k] == expected, (L, C, q, k)


def test_views_share_one_clean_stream():
    """A view is the noisy stream of a pattern of its own; the views do not see each other."""
    L, C = 12, 4
    one, two = CleanContext(L, C).dense(2 * L, 2 * L), CleanContext(L, C, noisy_length=2 * L).dense(3 * L, 3 * L)
    first, second, clean = slice(0, L), slice(L, 2 * L), slice(2 * L, 3 * L)
    for view, other in ((first, second), (second, first)):
        assert (two[view, view] == one[:L, :L]).all() and (two[view, clean] == one[:L, L:]).all()
        assert not two[view, other].any()
    assert (two[clean, clean] == one[L:, L:]).all() and not two[clean, : 2 * L].any()


@pytest.mark.parametrize(("L", "C"), [(12, 4), (64, 8), (30, 5), (16, 1), (16, 16)])
def test_attended_pairs_are_those_of_the_method(L, C):
    assert CleanContext(L, C).dense(2 * L, 2 * L).sum() == L * L + L * C


def test_block_length_one_is_causal():
    assert (BlockCausal(1).dense(9, 9) == Causal().dense(9, 9)).all()


def test_positions_run_on_each_stream():
    assert CleanContext(3, 1).positions(6).tolist() == [0, 1, 2, 0, 1, 2]
    assert CleanContext(4, 2, noisy_length=6).positions(10).tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2, 3]
    assert Causal().positions(3).tolist() == [0, 1, 2]


def test_patterns_are_values():
    assert CleanContext(8, 2) == CleanContext(8, 2) and hash(BlockCausal(4)) == hash(BlockCausal(4))
    assert CleanContext(8, 2) != CleanContext(8, 4)


def test_bad_patterns_are_refused():
    with pytest.raises(InputError, match="positive"):
        BlockCausal(0)
    with pytest.raises(InputError, match="'block_causal' or 'token_causal'"):
        CleanContext(8, 2, "causal")
    with pytest.raises(InputError, match="'bidirectional' or 'causal'"):
        CleanContext(8, 2, noisy="token_causal")
    with pytest.raises(InputError, match="must divide"):
        CleanContext(8, 4, noisy_length=6)
    with pytest.raises(InputError, match="block_length=4 in groups of 2 must divide"):
        CleanContext(8, 4, noisy_length=12, group=2)
    with pytest.raises(InputError, match="group must be"):
        CleanContext(8, 4, group=0)
