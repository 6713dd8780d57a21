"""One forward in the open, for the oracles of the modes: any mask, any positions, no padding, one row.

The cache, where an oracle needs one, is a list of what each column last was.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from edlm_jax.models.cache import DecodingWeights, Rotary, forward

LENGTH = 48  # every forward is padded to this with columns that nobody sees: one program to compile


def predict(weights: DecodingWeights, tokens, mask_TT, mask_id, positions=None, drafts=0):
    """float64[T, V] logits without the mask token; `tokens` are ids, or their embeddings [T, D].

    Adapters act on the last `drafts` columns.
    """
    tokens = np.asarray(tokens)
    T = len(tokens)
    positions = np.arange(T) if positions is None else np.asarray(positions)
    padded = np.zeros((1, LENGTH, *tokens.shape[1:]), np.int32 if tokens.ndim == 1 else np.float32)
    padded[0, LENGTH - T :] = tokens
    mask = np.eye(LENGTH, dtype=bool)
    mask[LENGTH - T :, LENGTH - T :] = mask_TT
    positions = np.pad(positions, (LENGTH - T, 0))
    logits_TV = np.array(_logits(weights, padded, positions, mask, drafts), np.float64)[LENGTH - T :]
    logits_TV[:, mask_id] = -np.inf
    return logits_TV


def probabilities(logits_TV):
    """The softmax, in float64."""
    p_TV = np.exp(logits_TV - logits_TV.max(-1, keepdims=True))
    return p_TV / p_TV.sum(-1, keepdims=True)


class Columns:
    """Keys and values of a row's columns, layer by layer, as the last forward that wrote them left them."""

    def __init__(self, weights, mask_id, length=LENGTH):
        spec = weights.spec
        shape = (spec.num_layers, 1, length, spec.num_kv_heads, spec.head_dim)
        self.weights, self.mask_id, self.length = weights, mask_id, length
        self.k, self.v = np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    def forward(self, tokens, mask_TT, columns):
        """Probabilities at all columns; only `columns` are computed anew, the others keep keys and values."""
        T = len(tokens)
        padded, mask = np.zeros((1, self.length), np.int32), np.eye(self.length, dtype=bool)
        padded[0, :T], mask[:T, :T] = tokens, mask_TT
        new_T = np.isin(np.arange(self.length), columns)
        logits_TV, k, v = _cached_logits(self.weights, padded, mask, new_T, self.k, self.v)
        self.k, self.v = np.array(k), np.array(v)
        logits_TV = np.array(logits_TV, np.float64)[:T]
        logits_TV[:, self.mask_id] = -np.inf
        return probabilities(logits_TV)


@jax.jit
def _cached_logits(weights, tokens_1T, mask_TT, new_T, old_k, old_v):
    keys, values = [], []

    def attention(index, q_BTNH, k_BTKH, v_BTKH):
        keys.append(jnp.where(new_T[None, :, None, None], k_BTKH, old_k[index]))
        values.append(jnp.where(new_T[None, :, None, None], v_BTKH, old_v[index]))
        return _attend(q_BTNH, keys[-1], values[-1], mask_TT)

    rotary = Rotary.of(weights.spec, tokens_1T.shape[1]).at(jnp.arange(tokens_1T.shape[1])[None])
    return weights.logits(forward(weights, tokens_1T, rotary, attention))[0], jnp.stack(keys), jnp.stack(values)


@partial(jax.jit, static_argnames="drafts")
def _logits(weights, tokens_1T, positions_T, mask_TT, drafts):
    attention = lambda _, q_BTNH, k_BTKH, v_BTKH: _attend(q_BTNH, k_BTKH, v_BTKH, mask_TT)  # noqa: E731
    rotary = Rotary.of(weights.spec, 2 * LENGTH).at(positions_T[None])
    return weights.logits(forward(weights, tokens_1T, rotary, attention, drafts=drafts))[0]


def _attend(q_BTNH, k_BTKH, v_BTKH, mask_TT):
    groups = q_BTNH.shape[2] // k_BTKH.shape[2]
    k_BTNH, v_BTNH = jnp.repeat(k_BTKH, groups, axis=2), jnp.repeat(v_BTKH, groups, axis=2)
    scores_BNTS = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, k_BTNH) / np.sqrt(q_BTNH.shape[-1])
    p_BNTS = jax.nn.softmax(jnp.where(mask_TT[None, None], scores_BNTS, -1e30), axis=-1)
    return jnp.einsum("BNTS,BSNH->BTNH", p_BNTS, v_BTNH)


def causal(length, block_from=None):
    """bool[T, T]: causal, but from `block_from` on the columns see each other both ways."""
    mask_TT = np.tri(length, dtype=bool)
    if block_from is not None:
        mask_TT[block_from:, block_from:] = True
    return mask_TT
