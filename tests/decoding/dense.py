"""One forward in the open, for the oracles of the modes: any mask, any positions, no cache, no padding, one row."""

import jax
import jax.numpy as jnp
import numpy as np

from edlm_jax.models.cache import DecodingWeights, Rotary, forward

LENGTH = 48  # every forward is padded to this with columns that nobody sees: one program to compile


def predict(weights: DecodingWeights, tokens, mask_TT, mask_id, positions=None):
    """float64[T, V] logits without the mask token; `tokens` are ids, or their embeddings [T, D]."""
    tokens = np.asarray(tokens)
    T = len(tokens)
    positions = np.arange(T) if positions is None else np.asarray(positions)
    padded = np.zeros((1, LENGTH, *tokens.shape[1:]), np.int32 if tokens.ndim == 1 else np.float32)
    padded[0, :T] = tokens
    mask = np.eye(LENGTH, dtype=bool)
    mask[:T, :T] = mask_TT
    logits_TV = np.array(_logits(weights, padded, np.pad(positions, (0, LENGTH - T)), mask), np.float64)[:T]
    logits_TV[:, mask_id] = -np.inf
    return logits_TV


def probabilities(logits_TV):
    """The softmax, in float64."""
    p_TV = np.exp(logits_TV - logits_TV.max(-1, keepdims=True))
    return p_TV / p_TV.sum(-1, keepdims=True)


@jax.jit
def _logits(weights, tokens_1T, positions_T, mask_TT):
    def attention(_, q_BTNH, k_BTKH, v_BTKH):
        groups = q_BTNH.shape[2] // k_BTKH.shape[2]
        k_BTNH, v_BTNH = jnp.repeat(k_BTKH, groups, axis=2), jnp.repeat(v_BTKH, groups, axis=2)
        scores_BNTS = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, k_BTNH) / np.sqrt(q_BTNH.shape[-1])
        p_BNTS = jax.nn.softmax(jnp.where(mask_TT[None, None], scores_BNTS, -1e30), axis=-1)
        return jnp.einsum("BNTS,BSNH->BTNH", p_BNTS, v_BTNH)

    rotary = Rotary.of(weights.spec, 2 * LENGTH).at(positions_T[None])
    return weights.logits(forward(weights, tokens_1T, rotary, attention))[0]


def causal(length, block_from=None):
    """bool[T, T]: causal, but from `block_from` on the columns see each other both ways."""
    mask_TT = np.tri(length, dtype=bool)
    if block_from is not None:
        mask_TT[block_from:, block_from:] = True
    return mask_TT
