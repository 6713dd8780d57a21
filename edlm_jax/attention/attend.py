"""Attention planned once a forward: a pattern becomes the cheapest exact computation of this machine.

`attend_dense` (reference.py, which has the letters of shapes) is what every plan must equal.
"""

from collections.abc import Callable

import jax
import numpy as np

from edlm_jax.attention.context import InPieces, plan_in_pieces
from edlm_jax.attention.pattern import Sight, Tiles
from edlm_jax.attention.refusal import kernels_for
from edlm_jax.attention.splash import plan_splash
from edlm_jax.attention.split import plan_split
from edlm_jax.attention.tiled import plan_tiled
from edlm_jax.attention.triton import plan_triton
from edlm_jax.parallel.devices import platform

# Rows of up to so many keys take the split there: on a GPU a choice, not yet measured; on two CPU cores tiles are 1.8
# times as fast at 2048 keys with four documents a row, 0.86 with one, and slower at 1024 keys. On TPU, of rows with
# copies that only the step knows, for splash kernels take the others; not yet measured.
_SHORT = {"gpu": 512, "cpu": 1024, "tpu": 1024}

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (q_BTNH, k_BSKH, v_BSKH) -> out_BTNH


def plan_attention(sight: Sight, heads: tuple[int, int], tiles: Tiles | None = None) -> Attend:
    """Scaled dot-product attention of all layers of a forward, for the platform and the mesh that it is traced for.

    What they share is worked out here: masks, documents, and the tiles that are worth a visit. The result of each is
    named "attention" for remat policies. `heads` are (those of queries, of keys), `tiles` those of whichever backend
    computes in tiles, by default its own.
    """
    if isinstance(sight.pattern, InPieces):
        return plan_in_pieces(sight, heads, tiles)
    if platform() == "tpu" and sight.copies_BM is None and sight.seen_TS is None:
        return plan_splash(sight, heads, tiles)
    if sight.seen_TS is None and sight.k_len > _SHORT.get(platform(), np.inf):
        return (plan_triton if kernels_for(tiles) == "gpu" else plan_tiled)(sight, tiles)
    return plan_split(sight)
