"""Plans as functions of everything: what tests compare with the dense reference."""

from edlm_jax.attention import Sight, plan_attention
from edlm_jax.attention.context import plan_in_pieces
from edlm_jax.attention.splash import plan_splash
from edlm_jax.attention.split import plan_split
from edlm_jax.attention.triton import plan_triton


def planned(plan):
    """`attend(q, k, v, pattern=..., segments, copies, pairs)` of `plan(sight, heads)`, planned anew at each call."""

    def attend(q_BTNH, k_BSKH, v_BSKH, *, pattern, **known):
        (B, T, N), (S, K) = q_BTNH.shape[:3], k_BSKH.shape[1:3]
        return plan(Sight(pattern, B, T, S, **known), (N, K))(q_BTNH, k_BSKH, v_BSKH)

    return attend


attend = planned(plan_attention)
attend_split = planned(lambda sight, heads: plan_split(sight))


def attend_splash(q, k, v, *, tiles=None, interpret=False, **seen):
    """JAX's TPU kernels."""
    return planned(lambda sight, heads: plan_splash(sight, heads, tiles, interpret))(q, k, v, **seen)


def attend_triton(q, k, v, *, tiles=None, interpret=False, **seen):
    """Our GPU kernels."""
    return planned(lambda sight, heads: plan_triton(sight, tiles, interpret))(q, k, v, **seen)


def attend_in_pieces(q, k, v, *, tiles=None, interpret="", **seen):
    """Rows over several devices."""
    return planned(lambda sight, heads: plan_in_pieces(sight, heads, tiles, interpret))(q, k, v, **seen)
