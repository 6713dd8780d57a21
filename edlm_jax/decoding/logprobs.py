"""What AR gives to the tokens that are settled, and to the best ones in their places, where a row asks for it.

Shapes: B rows, T columns of a window, X token columns, V vocabulary, N log-probabilities of a column: its own token's,
then those of the best.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from edlm_jax.decoding.windows import put

MOST_BEST = 20  # tokens beside the settled one: the room for them is compiled in


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Logprobs:
    """Tokens, and their log-probabilities in nats: before temperature, top-k and top-p."""

    tokens_BXN: jax.Array
    log_p_BXN: jax.Array

    @classmethod
    def empty(cls, B: int, X: int, V: int) -> "Logprobs":
        """Of nothing yet."""
        shape = B, X, 1 + min(MOST_BEST, V)
        return cls(jnp.zeros(shape, jnp.int32), jnp.zeros(shape))

    def put(self, new_BT, logits_BTV, start_B, where_BT) -> "Logprobs":
        """With those of new tokens, by the logits that AR has for them, where they are wanted."""

        def found(carry):
            log_p_BTV = jax.nn.log_softmax(logits_BTV)
            best_BTN, tokens_BTN = jax.lax.top_k(log_p_BTV, self.tokens_BXN.shape[-1] - 1)
            own_BT1 = jnp.take_along_axis(log_p_BTV, new_BT[..., None], axis=-1)
            tokens_BTN = jnp.concatenate([new_BT[..., None], tokens_BTN], axis=-1)
            new = Logprobs(tokens_BTN, jnp.concatenate([own_BT1, best_BTN], axis=-1))
            return False, jax.tree.map(lambda x, new: put(x, new, start_B, where_BT[..., None]), carry[1], new)

        # A loop that runs at most once, instead of a branch: what is known is updated in place.
        return jax.lax.while_loop(lambda carry: carry[0], found, (where_BT.any(), self))[1]

    def at(self, row: int, columns: slice) -> list[list[tuple[int, float]]]:
        """(token, log-probability) of a row's columns: the column's own first."""
        tokens_TN, log_p_TN = (np.asarray(x_BXN)[row, columns].tolist() for x_BXN in (self.tokens_BXN, self.log_p_BXN))
        return [list(zip(*column, strict=True)) for column in zip(tokens_TN, log_p_TN, strict=True)]
