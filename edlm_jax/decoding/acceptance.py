"""Which tokens to propose and which to keep: small pure functions, one denoising step at a time.

Shapes: B rows, C positions of the block, V vocabulary.
"""

import jax
import jax.numpy as jnp

NEVER = -jnp.inf


def propose(logits_BCV, keys_B, temperature, *, banned_id: int | None):
    """(tokens_BC, confidence_BC): the chosen token and its softmax probability, without temperature or noise.

    `keys_B` None is greedy; with keys, Gumbel-max sampling at `temperature`, one key a row so that a row draws the same
    noise in any batch. `banned_id`, the mask token, is never proposed.
    """
    if banned_id is not None:
        logits_BCV = logits_BCV.at[..., banned_id].set(NEVER)
    scores_BCV = logits_BCV
    if keys_B is not None:
        noise_BCV = jax.vmap(lambda key: jax.random.gumbel(key, logits_BCV.shape[1:]))(keys_B)
        # Temperature 0 inside a sampling program is greedy: the noise is dropped instead of dividing by zero.
        scores_BCV = logits_BCV + temperature * noise_BCV
    tokens_BC = jnp.argmax(scores_BCV, axis=-1).astype(jnp.int32)
    chosen_BC = jnp.take_along_axis(logits_BCV, tokens_BC[..., None], axis=-1)[..., 0]
    return tokens_BC, jnp.exp(chosen_BC - jax.nn.logsumexp(logits_BCV, axis=-1))


def accept(confidence_BC, masked_BC, *, threshold, at_least):
    """bool[B, C]: the masked positions to keep: the `at_least` most confident, and all with confidence >= threshold.

        confidence  .99  .40  .95  .70      masked  yes  yes  no  yes      threshold .9, at_least 1
        accepted    yes  no   no   no

    A threshold of 1 keeps only the `at_least` best: no probability is truly 1, though float32 may round to it.
    """
    confidence_BC = jnp.where(masked_BC, confidence_BC, NEVER)
    rank_BC = jnp.argsort(jnp.argsort(-confidence_BC, axis=-1), axis=-1)
    sure_BC = (confidence_BC >= threshold) & (threshold < 1)
    return masked_BC & (sure_BC | (rank_BC < at_least))
