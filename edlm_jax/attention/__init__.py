"""Who may look at whom (`pattern`), and how fast (`attend`)."""

from edlm_jax.attention.attend import attend, attend_cached, attend_dense
from edlm_jax.attention.pattern import Bidirectional, BlockCausal, Causal, CleanContext, Pattern, same_segment

__all__ = [
    "Bidirectional",
    "BlockCausal",
    "Causal",
    "CleanContext",
    "Pattern",
    "attend",
    "attend_cached",
    "attend_dense",
    "same_segment",
]
