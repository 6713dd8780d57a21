"""Are the attention kernels of this machine right? Forward and backward against the dense reference, at odd sizes."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edlm_jax.attention import BlockCausal, Causal, CleanContext, Pattern, Sight, attend_dense, plan_attention
from edlm_jax.attention.refusal import refusal
from edlm_jax.benchmarks.attention import forward_and_backward, random_arrays

# Of the largest value: eight bits of bfloat16, and float32 products as the hardware rounds them (TF32 keeps ten bits).
BOUNDS = {"float32": 2e-3, "bfloat16": 2e-2}
_HEADS, _HEAD_SIZE = (4, 2), 64


def kernel_errors(length: int = 900, rows: int = 2) -> dict[str, Any]:
    """Of each pattern and dtype the largest error of output and gradients, as a share of the largest value.

    `length` is of a stream and need not be even; rows hold documents. "right": is every error within BOUNDS?
    "refused": why a GPU takes no kernels, whose errors these then are not.
    """
    C = 12
    length = length // C * C
    patterns = {
        "causal": (Causal(), length - 5),
        "block_causal": (BlockCausal(C), length - 5),
        "clean_context": (CleanContext(length, C), 2 * length),
        "semi_block": (CleanContext(length, C, "token_causal"), 2 * length),
        "causal noisy blocks": (CleanContext(length, C, "token_causal", noisy="causal"), 2 * length),
    }
    errors, right = {}, {}
    for dtype, bound in BOUNDS.items():
        errors[dtype] = {name: _errors(*seen, rows, C, dtype) for name, seen in patterns.items()}
        right[dtype] = max(max(found.values()) for found in errors[dtype].values()) <= bound
    return dict(length=length, bounds=BOUNDS, errors=errors, right=right, refused=refusal())


def _errors(pattern: Pattern, columns: int, rows: int, C: int, dtype: str) -> dict[str, float]:
    arrays = random_arrays(rows, columns, *_HEADS, _HEAD_SIZE, dtype)
    stream = getattr(pattern, "length", columns)
    document_BL = np.arange(stream) // max(stream // 3 // C * C, C) + np.zeros((rows, 1), int)
    ids_BT = jnp.asarray(np.tile(document_BL, columns // stream), jnp.int32)

    def ours(q, k, v):
        return plan_attention(Sight(pattern, rows, columns, columns, ids_BT, ids_BT), _HEADS)(q, k, v)

    dense = partial(attend_dense, pattern=pattern, q_segments_BT=ids_BT, k_segments_BS=ids_BT)
    exact = [x.astype(jnp.float32) for x in arrays]
    with jax.default_matmul_precision("highest"):
        wanted = forward_and_backward(dense)(*exact)
    shares = map(_share, forward_and_backward(ours)(*arrays), wanted)
    return dict(zip(("out", "dq", "dk", "dv"), shares, strict=True))


def _share(found, wanted) -> float:
    found, wanted = np.asarray(found, np.float32), np.asarray(wanted)
    return float(np.max(np.abs(found - wanted)) / np.max(np.abs(wanted)))
