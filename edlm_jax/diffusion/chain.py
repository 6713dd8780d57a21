"""Noise of several blocks in flight: along a group of consecutive blocks there is ever more (MultiTF, 2606.29215).

A decoder that begins a block before the one before it is done (`multi_block`) has later blocks see earlier ones that
are noisy still. So here: a block of a group sees those of the group before it as noisy as they are, and the clean text
before the group alone (`CleanContext.group`).
"""

from dataclasses import dataclass
from typing import Self

import jax
import jax.numpy as jnp

from edlm_jax.diffusion.masks import EPSILON, PositionWeighted
from edlm_jax.errors import InputError

_RESERVE = 0.01  # the paper's repository: of the levels, the highest hundredth is not drawn


@dataclass(frozen=True)
class Chain(PositionWeighted):
    """t_0 ~ U(least, most), which no block has; then block by block t_i ~ U(t_(i-1), most). Three groups of 4:

        0.31 0.62 0.93 0.95 | 0.05 0.74 0.80 0.91 | 0.66 0.70 0.98 0.98

    How many blocks follow changes nothing for a block: groups of 4 hold all that groups of 2 and 3 do. Which positions
    hide is as elsewhere, by the half-life.
    """

    group: int = 2

    @classmethod
    def of(cls, mask_id: int, half_life: float | None, group: int) -> Self:
        """Raises InputError for what makes no chain."""
        if group < 2:
            raise InputError(f"config.objective.noise='chain' needs config.objective.group of 2 or more, not {group}")
        if not (half_life and half_life > 0):
            what = f"config.objective.noise='chain' has a level a block and needs half_life > 0, not {half_life}"
            raise InputError(f"{what}; inf is uniform in a block")
        return cls(mask_id, half_life, group)

    def levels(self, key, N):
        """Of the N blocks of a row, the last group of which may be a short one."""
        most = 1 - _RESERVE * (1 - EPSILON)
        u_XG = jax.random.uniform(key, (-(-N // self.group), self.group + 1))
        # What is left up to `most` shrinks by a factor from block to block, the first of which no block has.
        left_XG = (most - EPSILON) * jnp.cumprod(1 - u_XG, axis=1)[:, 1:]
        return (most - left_XG).reshape(-1)[:N]
