"""Which block length a step trains: always the same, one after the other (a curriculum), or one drawn at random.

Each length is its own compiled program: a static length keeps the pattern's kernels exact; `lax.switch` would compile
every branch into one program and keep the largest one's memory.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from ml_collections import ConfigDict

from edlm_jax.diffusion.streams import Layout
from edlm_jax.errors import InputError


@dataclass(frozen=True)
class BlockLengths:
    """A function of the seed and the step."""

    choices: tuple[int, ...]  # one of them is drawn for each step
    stages: tuple[tuple[int, int], ...] = ()  # (block length, steps) of those that come before

    @classmethod
    def of(cls, o: ConfigDict, layout: Layout, length: int) -> "BlockLengths":
        """Those of config.objective, for rows of `length`; AR has no blocks. Raises InputError for what no row has."""
        if not layout.noisy:
            return cls((layout.block_length,))
        for name in ("random_block_lengths", "curriculum"):
            if o[name] and layout.cut is None:
                raise InputError(f"config.objective.{name} means nothing under pattern={o.pattern!r}")
        for block_length in o.random_block_lengths:
            if not isinstance(block_length, int) or block_length < 1 or o.block_length % block_length:
                raise InputError(
                    f"config.objective.random_block_lengths: {block_length!r} is not a divisor of block_length="
                    f"{o.block_length}, the grid on which documents are packed"
                )
        for stage in o.curriculum:
            numbers = stage if isinstance(stage, tuple | list) else ()
            if len(numbers) != 2 or not all(isinstance(n, int) and n > 0 for n in numbers):
                raise InputError(f"config.objective.curriculum: {stage!r} is not (block length, steps)")
        streams = ("data.length", length, 1), ("objective.noisy_length", o.noisy_length, layout.views)
        for block_length in (layout.block_length, *(stage[0] for stage in o.curriculum)):
            for name, columns, views in streams:
                if columns % (block_length * o.group * views):
                    groups, copies = f"groups of {o.group} " * (o.group > 1), f" x {views} views" * (views > 1)
                    parts = f"{groups}blocks of {block_length}{copies}"
                    raise InputError(f"config.objective: {parts} do not divide config.{name}={columns}")
        return cls(tuple(o.random_block_lengths) or (layout.block_length,), tuple(map(tuple, o.curriculum)))

    @property
    def several(self) -> bool:
        """Is there more than one?"""
        return bool(self.stages) or len(self.choices) > 1

    def at(self, seed: int, step: int) -> int:
        """The block length of a step, on the host."""
        ends = itertools.accumulate(steps for _, steps in self.stages)
        for (block_length, _), end in zip(self.stages, ends, strict=True):
            if step < end:
                return block_length
        return int(np.random.default_rng((seed, step)).choice(self.choices))
