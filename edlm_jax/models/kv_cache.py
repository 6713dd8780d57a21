"""The static-shape cache of keys and values that decoding reads and writes: a row's columns in a stretch, or in pages.

Shapes: B rows, T new columns, S cache columns, K key heads, H head size, G pages of a row. In pages the arrays hold
pages where they hold rows else, S / G columns in each, and the table names each row's, as attention.cc reads it:

    pages  0 1 2 3 4 5       table  4 0 2       row 0: columns of page 4, then 0, then 2
           . . . . . .              4 5 -       row 1 begins as row 0 does, and has no more than two

A page below zero is none: what is written there is lost, and no mask may let anyone see it.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from edlm_jax.models.backend import write
from edlm_jax.models.spec import ModelSpec


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Rotated keys and values of every layer, heads before columns; which columns count, the decoder knows."""

    k_BKSH: tuple[jax.Array, ...]
    v_BKSH: tuple[jax.Array, ...]
    positions_BS: jax.Array | None = None  # of the columns, where some layer has a window
    table_BG: jax.Array | None = None  # int32, where the cache is one of pages

    @classmethod
    def empty(cls, spec: ModelSpec, rows: int, length: int, dtype="float32") -> "KVCache":
        """Of so many columns, none of them written."""
        zeros_BKSH = (jnp.zeros((rows, spec.num_kv_heads, length, spec.head_dim), dtype),) * spec.num_layers
        return cls(zeros_BKSH, zeros_BKSH, None if spec.windows == (None,) else jnp.zeros((rows, length), jnp.int32))

    @property
    def columns(self) -> int:
        """Of a row."""
        return self.k_BKSH[0].shape[2] * (1 if self.table_BG is None else self.table_BG.shape[1])

    def placed(self, new_BT, start, where_BT) -> "KVCache":
        """With the positions of new columns, where any are kept: from `start` on, where `where_BT` (None: all)."""
        if self.positions_BS is None:
            return self
        if self.table_BG is None:
            columns = self.positions_BS[:, None, :, None], new_BT[:, :, None, None]
            return replace(self, positions_BS=write(*columns, start, where_BT)[:, 0, :, 0])
        pages, P = self.positions_BS.shape
        columns_BT = jnp.reshape(start, (-1, 1)) + jnp.arange(new_BT.shape[1])[None]
        columns_BT = jnp.broadcast_to(columns_BT, new_BT.shape)
        page_BT = jnp.take_along_axis(self.table_BG, columns_BT // P, axis=1)
        page_BT = jnp.where((page_BT >= 0) & (True if where_BT is None else where_BT), page_BT, pages)
        return replace(self, positions_BS=self.positions_BS.at[page_BT, columns_BT % P].set(new_BT, mode="drop"))

    def positions_of_rows(self):
        """int32[B, S], if positions are kept."""
        if self.table_BG is None or self.positions_BS is None:
            return self.positions_BS
        return self.positions_BS[self.table_BG].reshape(len(self.table_BG), -1)
