"""Who may look at whom (`pattern`), and how fast (`attend`)."""

from edlm_jax.attention.attend import attend, attend_cached, attend_dense
from edlm_jax.attention.context import InPieces, attend_in_pieces
from edlm_jax.attention.pattern import Bidirectional, BlockCausal, Causal, CleanContext, Pattern, same_segment
from edlm_jax.attention.splash import Tiles, attend_splash, count_tiles
from edlm_jax.attention.triton import attend_triton

__all__ = [
    "Bidirectional",
    "BlockCausal",
    "Causal",
    "CleanContext",
    "InPieces",
    "Pattern",
    "Tiles",
    "attend",
    "attend_cached",
    "attend_dense",
    "attend_in_pieces",
    "attend_splash",
    "attend_triton",
    "count_tiles",
    "same_segment",
]
