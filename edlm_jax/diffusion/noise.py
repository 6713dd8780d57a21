"""The noise of block diffusion (arXiv 2512.14067, section 3.3): how much of each block to hide, where, and behind what.

A new kind is a file with its class and, if configs may name it, a line in registry.py. Noise of a row depends on its
own key alone, so a batch may be split, sharded or reordered without changing it.

Shapes: B rows, L positions, M noisy columns, C block length, N = ceil(L / C) blocks.
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Corruption(NamedTuple):
    """A noisy stream: its tokens, which of them are noise, at which level t, and what each column is a copy of."""

    noisy_BM: jax.Array
    masked_BM: jax.Array
    noise_level_BM: jax.Array
    copies_BM: jax.Array | None = None  # None: whole views, column j of column j % L
    guessed_BM: jax.Array | None = None  # noise whose place the model's own guess takes before the loss
    taught: tuple[jax.Array, jax.Array] | None = None  # a teacher's best logits of each column, and whose they are

    def copied(self, x_BL: jax.Array) -> jax.Array:
        """What the clean columns hold, for the noisy ones; it may have further axes."""
        further = (1,) * (x_BL.ndim - 2)
        if self.copies_BM is not None:
            return jnp.take_along_axis(x_BL, self.copies_BM.reshape(*self.copies_BM.shape, *further), axis=1)
        views = self.noisy_BM.shape[1] // x_BL.shape[1]
        return x_BL if views == 1 else jnp.tile(x_BL, (1, views, *further))


@dataclass(frozen=True)
class Noise:
    """The base: tokens are hidden behind the mask token."""

    mask_id: int

    views = 1  # copies of each block that are drawn together
    group = 1  # consecutive blocks that are noisy together: a field of some

    def hide(self, key, corruptible_L, block_length: int) -> tuple[Bool[Array, " M"], Float[Array, " M"]]:
        """(what is hidden, the noise level t of each column) of one row: M = views * L columns."""
        raise NotImplementedError

    def prior(self, keys_B, tokens_BM: Int[Array, "B M"], level_BM) -> Int[Array, "B M"] | int:
        """What stands in a hidden token's place."""
        return self.mask_id

    def of_model(self, mask_id: int, vocabulary: int) -> "Noise":
        """The same with a model's mask token and, where it plays a part, the size of its vocabulary."""
        own = {field.name for field in dataclasses.fields(self)}
        of_model = dict(mask_id=mask_id, vocabulary=vocabulary)
        return dataclasses.replace(self, **{name: value for name, value in of_model.items() if name in own})

    def at(self, half_life) -> "Noise":
        """With this half-life, known only in a compiled program, where there is one that may be."""
        return self

    def corrupt(self, keys_B, tokens_BL, corruptible_BL, block_length: int, noisy_length: int = 0) -> Corruption:
        """The noisy stream: of every block, or `noisy_length` columns in all, see `choose_copies`."""
        copies_BM = None
        if noisy_length:
            choice_keys_B, keys_B = jax.vmap(jax.random.split, out_axes=1)(keys_B)
            sizes = dict(block_length=block_length, noisy_length=noisy_length // self.views, group=self.group)
            copies_BM = choose_copies(choice_keys_B, corruptible_BL, **sizes)
            take = lambda x_BL: jnp.take_along_axis(x_BL, copies_BM, axis=1)  # noqa: E731
            tokens_BL, corruptible_BL = take(tokens_BL), take(corruptible_BL)
            copies_BM = jnp.tile(copies_BM, (1, self.views))
        tokens_BM = jnp.tile(tokens_BL, (1, self.views))
        hide = lambda key, corruptible_L: self.hide(key, corruptible_L, block_length)  # noqa: E731
        masked_BM, level_BM = jax.vmap(hide)(keys_B, corruptible_BL.astype(bool))
        noisy_BM = jnp.where(masked_BM, self.prior(keys_B, tokens_BM, level_BM), tokens_BM)
        return Corruption(noisy_BM, masked_BM, level_BM, copies_BM)


def example_keys(key: jax.Array, count: int) -> jax.Array:
    """One key per example from its index in the global batch: independent of mesh, processes and micro-batches."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(count))


def choose_copies(
    key, corruptible_BL: Bool[Array, "B L"], *, block_length: int, noisy_length: int, group: int = 1
) -> Int[Array, "B M"]:
    """The columns that M = `noisy_length` noisy columns are copies of, where not every block has its one noisy copy.

    A forward pass over the noisy copy of a block without a corruptible token teaches nothing: prompts and padding get
    none. The other blocks of a row are dealt out in random order, over and over, until the noisy stream is full: each
    has then the same number of views, give or take one, or, where they are too many, the same chance of having one.

        C = 2, M = 8:   prompt  prompt  answer  answer  padding      copies, for example
                        0 1     2 3     4 5     6 7     8 9          6 7  4 5  6 7  4 5

    Groups of blocks are dealt as blocks are: all that hold a block with a corruptible token, wherever they begin, so
    that a block is as often the first of its group as the second. Where one would reach beyond the row it is moved in.

        groups of 2:    prompt  prompt  answer  answer  padding      0 | 2 3 4 5 | 4 5 6 7 | 6 7 8 9  in some order

    `key` has B keys, one a row; C divides L and M, and so does a group of `group` blocks.
    """
    C, span = block_length, group * block_length

    def row(key, corruptible_L):
        useful_N = corruptible_L.reshape(-1, C).any(-1)
        first_W = jnp.clip(jnp.arange(1 - group, len(useful_N)), 0, len(useful_N) - group)
        useful_W = useful_N[first_W[:, None] + jnp.arange(group)[None]].any(-1)
        order_W = jnp.argsort(jnp.where(useful_W, jax.random.uniform(key, useful_W.shape), 2.0))
        dealt = jnp.arange(noisy_length // span) % jnp.maximum(useful_W.sum(), 1)
        return (first_W[order_W[dealt]][:, None] * C + jnp.arange(span)[None]).reshape(-1)

    return jax.vmap(row)(key, corruptible_BL.astype(bool))
