"""Who may look at whom (`pattern`), and how fast (`plan_attention` once a forward)."""

from edlm_jax.attention.attend import Attend, plan_attention
from edlm_jax.attention.context import InPieces
from edlm_jax.attention.pattern import (
    PLAIN,
    Bidirectional,
    BlockCausal,
    Causal,
    CleanContext,
    Pattern,
    Sight,
    SlidingWindow,
    Tiles,
    same_segment,
)
from edlm_jax.attention.reference import attend_cached, attend_dense
from edlm_jax.attention.splash import count_tiles

__all__ = ["PLAIN", "Attend", "Bidirectional", "BlockCausal", "Causal", "CleanContext", "InPieces", "Pattern", "Sight"]
__all__ += ["SlidingWindow", "Tiles", "attend_cached", "attend_dense", "count_tiles", "plan_attention", "same_segment"]
