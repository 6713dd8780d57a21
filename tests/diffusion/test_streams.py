"""What a layout says of a row, against its own pattern looked at as a whole."""

import jax
import numpy as np
import pytest

from edlm_jax.attention import Bidirectional, BlockCausal, Causal, CleanContext
from edlm_jax.diffusion import example_keys
from edlm_jax.diffusion.streams import CONVERSIONS, LAYOUTS, find_layout
from edlm_jax.errors import InputError
from tests.training.tiny import make_objective, random_batch

L, C = 24, 4
PATTERNS = {
    "causal": Causal(),
    "bidirectional": Bidirectional(),
    "block_causal": BlockCausal(C),
    "clean_context": CleanContext(L, C),
    "semi_block": CleanContext(L, C, "token_causal"),
    "causal_block": CleanContext(L, C, "token_causal", noisy="causal"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_agrees_with_its_pattern(name):
    layout, pattern = find_layout(name, C), PATTERNS[name]
    T = layout.columns(L)
    assert layout.pattern(L) == pattern and len(pattern.positions(T)) == T
    mask_TT = pattern.dense(T, T)
    assert layout.pairs(L) == mask_TT.sum()
    for window in (C, L - 3, L):
        assert layout.pairs(L, window) == pattern.within(window).dense(T, T).sum()
    # Next tokens may be learned where no clean column, the row's last ones, sees a later one.
    clean_LL = mask_TT[-L:, -L:]
    assert layout.next_tokens == (layout.clean is not None and not np.triu(clean_LL, 1).any())
    # As a prompt sees itself in decoding, the columns that hold it saw each other.
    prefill = {"causal": Causal(), "block_causal": BlockCausal(C), "bidirectional": Bidirectional()}[layout.prefill]
    np.testing.assert_array_equal(clean_LL, prefill.dense(L, L))
    # Tiles of a block each: those that hold a pair.
    if layout.cut:
        tiles = mask_TT.reshape(T // C, C, T // C, C).any((1, 3)).sum()
        assert layout.fewest_tiles(L // C) == tiles + layout.two_streams * L // C
    assert (name in CONVERSIONS) == (layout.noisy is not None)


def test_one_stream_has_no_noisy_length_and_blocks_are_measured_after_clean_ones():
    with pytest.raises(InputError, match="one stream"):
        find_layout("block_causal", C, "shifted", 2 * C)
    assert find_layout("block_causal", C, "shifted").as_decoded() == find_layout("clean_context", C, "shifted")
    dealt = find_layout("semi_block", C, "shifted", 2 * C)
    assert dealt.columns(L) == 2 * C + L and dealt.as_decoded() == find_layout("semi_block", C, "shifted")


@pytest.mark.parametrize("noisy_length", [0, 16])
def test_complementary_views_hide_every_token_once(noisy_length):
    objective = make_objective(noise="complementary", noisy_length=noisy_length)
    batch = random_batch(3, L, documents=(11, 9), pad_left=1)
    corruption = jax.device_get(objective.corrupt(example_keys(jax.random.key(5), 3), batch))
    M = noisy_length or 2 * L
    assert corruption.noisy_BM.shape == (3, M) == (3, objective.layout.noisy_columns(L))
    first, second = np.split(corruption.masked_BM, 2, axis=1)
    learnable = np.split(np.asarray(corruption.copied(batch["loss_mask"] > 0)), 2, axis=1)
    np.testing.assert_array_equal(learnable[0], learnable[1])
    assert not (first & second).any() and first.any() and second.any()
    np.testing.assert_array_equal(first | second, learnable[0])
    levels = np.split(corruption.noise_level_BM, 2, axis=1)
    np.testing.assert_allclose(levels[0] + levels[1], 1)
