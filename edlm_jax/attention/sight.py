"""What is known, before the first layer, of who may look at whom in a forward pass."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from edlm_jax.attention.pattern import Pattern


class Sight(NamedTuple):
    """A pattern over `q_len` query and `k_len` key columns of `batch` rows, with their documents.

    Where segment ids are given a column looks inside its own document alone. Under `CleanContext`, `copies_BM` says
    which clean column each noisy one is a copy of, whole blocks at a time.
    """

    pattern: Pattern
    batch: int
    q_len: int
    k_len: int
    q_segments_BT: jax.Array | None = None
    k_segments_BS: jax.Array | None = None
    copies_BM: jax.Array | None = None

    @property
    def by_row(self) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """(segments of queries, of keys, copies): what devices that share out rows share out; all one document if none.
        """
        if self.q_segments_BT is not None and self.k_segments_BS is not None:
            return self.q_segments_BT.astype(jnp.int32), self.k_segments_BS.astype(jnp.int32), self.copies_BM
        one_BT, one_BS = (jnp.zeros((self.batch, length), jnp.int32) for length in (self.q_len, self.k_len))
        return one_BT, one_BS, self.copies_BM


class Tiles(NamedTuple):
    """The largest tile of scores that is computed at once; a backend's own default is what was measured there."""

    queries: int
    keys: int
