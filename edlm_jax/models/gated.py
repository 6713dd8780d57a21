"""Layers whose adapters act on noisy columns alone (Uno, arXiv 2609.04010), of a row [noisy | clean].

The clean stream goes through by itself, without adapters: bit for bit as an AR model's rows do. Of it nothing is kept
for a backward pass but the keys and values that noisy columns read, and no gradient comes back to it.
"""

from collections.abc import Callable

import jax

from edlm_jax.attention import Attend, InPieces
from edlm_jax.models.lora import without_adapters
from edlm_jax.parallel.sharding import constrain


def two_streams(
    forward: Callable, row: InPieces, rotary: tuple | None, plans: tuple[Attend, Attend], checkpointed: Callable
) -> Callable:
    """`body((noisy_BMD, clean_BLD), layer)` of a scan over layers.

    Args:
      forward: `layer_forward` of a spec.
      plans: of noisy queries to the keys of the row, and of the clean stream to itself.
      checkpointed: what a function's backward pass computes again.
    """
    rotary_noisy, rotary_clean = zip(*map(row.split, rotary), strict=True) if rotary else (None, None)

    def noisy_layer(noisy_BMD, layer, k_BLKH, v_BLKH):
        attention = lambda q, k, v: plans[0](q, row.join(k, k_BLKH), row.join(v, v_BLKH))  # noqa: E731
        return constrain(forward(layer, noisy_BMD, rotary_noisy, attention), "BL_")

    noisy_layer = checkpointed(noisy_layer)

    def body(streams, layer):
        noisy_BMD, clean_BLD = streams[0], jax.lax.stop_gradient(streams[1])
        seen = []

        def attention(q_BLNH, k_BLKH, v_BLKH):
            seen.extend(map(jax.lax.stop_gradient, (k_BLKH, v_BLKH)))
            return plans[1](q_BLNH, k_BLKH, v_BLKH)

        own = jax.lax.stop_gradient(without_adapters(layer))
        clean_BLD = constrain(forward(own, clean_BLD, rotary_clean, attention), "BL_")
        return (noisy_layer(noisy_BMD, layer, *seen), clean_BLD), None

    return body
