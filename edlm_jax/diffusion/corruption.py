"""The noise of block diffusion (arXiv 2512.14067, section 3.3): how much of each block to mask, and where.

Shapes: B rows, L positions, C block length, N = ceil(L / C) blocks. Everything is vectorised and lives inside the
jitted step. Noise of a row depends on its own key alone, so a batch may be split, sharded or reordered without changing
it.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from edlm_jax.errors import InputError

EPSILON = 1e-3  # the least noise level: t ~ U(EPSILON, 1)


def corrupt(
    key,
    tokens_BL: Int[Array, "B L"],
    corruptible_BL: Bool[Array, "B L"],
    *,
    block_length: int,
    mask_id: int,
    half_life: float | Float[Array, ""] | None = 0.1,
) -> tuple[Int[Array, "B L"], Bool[Array, "B L"], Float[Array, "B L"]]:
    """Masks tokens; returns (noisy tokens, what was masked, the noise level t of each position).

    Position-weighted masking: each block draws t and hides k = round(t * n) of its n corruptible positions, without
    replacement, with weights exp(beta * (1 - t) * i) for the i-th position, beta = ln 2 / (half_life * C): at low noise
    the end of a block hides first, the order in which a decoder will not have got to it yet. One block of C = 8 at t =
    0.5, half_life 0.1:

        position  0    1    2    3    4    5    6    7
        weight    1.0  1.5  2.4  3.7  5.7  8.7  13   21
        noisy     a    b    M    d    e    M    M    M       k = 4

    Args:
      key: one key for the batch, or an array of B keys, one a row (what a micro-batched step passes).
      corruptible_BL: which positions may be masked (completions; never prompts or padding).
      block_length: C; the last block may be short.
      mask_id: the token that hides.
      half_life: lambda, as a fraction of the block. `inf` is uniform within the block, 0 always hides the rightmost k.
        An array is taken to be positive: a compiled program serves them all, but 0 is another one.
        `None` is the uniform baseline: one t per row, every position masked independently with probability t.
    """
    if half_life is not None and not isinstance(half_life, jax.Array) and not half_life >= 0:
        raise InputError(f"half_life must be >= 0 (inf: uniform, 0: rightmost first) or None, not {half_life}")
    B = tokens_BL.shape[0]
    keys_B = key if key.ndim else jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(B))
    corruptible_BL = corruptible_BL.astype(bool)
    if half_life is None:
        masked_BL, noise_level_BL = jax.vmap(_mask_uniform)(keys_B, corruptible_BL)
    else:
        mask_row = lambda key, row: _mask_blocks(key, row, block_length, half_life)  # noqa: E731
        masked_BL, noise_level_BL = jax.vmap(mask_row)(keys_B, corruptible_BL)
    return jnp.where(masked_BL, mask_id, tokens_BL), masked_BL, noise_level_BL


def choose_copies(
    key, corruptible_BL: Bool[Array, "B L"], *, block_length: int, noisy_length: int
) -> Int[Array, "B M"]:
    """The columns that M = `noisy_length` noisy columns are copies of, where not every block has its one noisy copy.

    A forward pass over the noisy copy of a block without a corruptible token teaches nothing: prompts and padding get
    none. The other blocks of a row are dealt out in random order, over and over, until the noisy stream is full: each
    has then the same number of views, give or take one, or, where they are too many, the same chance of having one.

        C = 2, M = 8:   prompt  prompt  answer  answer  padding      copies, for example
                        0 1     2 3     4 5     6 7     8 9          6 7  4 5  6 7  4 5

    Args:
      key: an array of B keys, one a row.
      block_length: C; divides L and M.
    """
    C = block_length

    def row(key, corruptible_L):
        useful_N = corruptible_L.reshape(-1, C).any(-1)
        order_N = jnp.argsort(jnp.where(useful_N, jax.random.uniform(key, useful_N.shape), 2.0))
        dealt = jnp.arange(noisy_length // C) % jnp.maximum(useful_N.sum(), 1)
        return (order_N[dealt][:, None] * C + jnp.arange(C)[None]).reshape(-1)

    return jax.vmap(row)(key, corruptible_BL.astype(bool))


def draw_masks(key: jax.Array, unknown_L: jax.Array, C: int) -> tuple[jax.Array, jax.Array]:
    """(masked_L, weight_L): in each block k of its n unknown tokens, k uniform in 1..n, and n / k.

    The noise of the bound on the log-likelihood, whatever noise a model was trained with.
    """
    count_key, order_key = jax.random.split(key)
    unknown_NC = unknown_L.reshape(-1, C)
    n_N1 = unknown_NC.sum(axis=1, keepdims=True)
    k_N1 = 1 + jnp.floor(jax.random.uniform(count_key, n_N1.shape) * n_N1).astype(int)
    k_N1 = jnp.minimum(k_N1, n_N1)
    order_NC = jnp.where(unknown_NC, jax.random.uniform(order_key, unknown_NC.shape), jnp.inf)
    rank_NC = jnp.argsort(jnp.argsort(order_NC, axis=1), axis=1)
    weight_NC = jnp.broadcast_to(n_N1 / jnp.maximum(k_N1, 1), unknown_NC.shape)
    return ((rank_NC < k_N1) & unknown_NC).reshape(-1), weight_NC.reshape(-1)


def _draw_level(key, shape):
    return jax.random.uniform(key, shape, minval=EPSILON, maxval=1.0)


def _mask_uniform(key, corruptible_L):
    level_key, mask_key = jax.random.split(key)
    level = _draw_level(level_key, ())
    hit_L = jax.random.uniform(mask_key, corruptible_L.shape) < level
    return hit_L & corruptible_L, jnp.broadcast_to(level, corruptible_L.shape)


def _mask_blocks(key, corruptible_L, C, half_life):
    L = corruptible_L.shape[0]
    N = -(-L // C)
    corruptible_NC = jnp.pad(corruptible_L, (0, N * C - L)).reshape(N, C)
    level_key, gumbel_key = jax.random.split(key)
    level_N1 = _draw_level(level_key, (N, 1))
    count_N1 = jnp.round(level_N1 * corruptible_NC.sum(-1, keepdims=True))
    if isinstance(half_life, jax.Array) or half_life > 0:
        score_NC = _log_weight(level_N1, C, half_life)
        score_NC = score_NC + jax.random.gumbel(gumbel_key, (N, C))  # Gumbel top-k: sampling without replacement
    else:
        score_NC = jnp.arange(C, dtype=jnp.float32)[None]
    score_NC = jnp.where(corruptible_NC, score_NC, -jnp.inf)
    rank_NC = jnp.argsort(jnp.argsort(-score_NC, axis=-1), axis=-1)
    masked_NC = (rank_NC < count_N1) & corruptible_NC
    level_NC = jnp.broadcast_to(level_N1, (N, C))
    return masked_NC.reshape(-1)[:L], level_NC.reshape(-1)[:L]


def _log_weight(level_N1, C, half_life):
    """log w_i(t) = beta * (1 - t) * i for i = 0..C-1."""
    index_C = jnp.arange(C, dtype=jnp.float32)
    return math.log(2) / (half_life * C) * (1 - level_N1) * index_C[None]
