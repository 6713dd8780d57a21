"""A window of columns of each row, wherever the row stands: read and written.

Shapes: B rows, T columns of the window, X token columns.
"""

import jax
import jax.numpy as jnp


def window(x_BX, start_B, length: int):
    """[B, length]: each row from its own column on."""
    return jax.vmap(lambda row, start: jax.lax.dynamic_slice_in_dim(row, start, length))(x_BX, start_B)


def put(x_BX, new_BT, start_B, where_BT):
    """x_BX with each row's new columns from its own start on, where they are wanted."""
    return put_whole(x_BX, jnp.where(where_BT, new_BT, window(x_BX, start_B, new_BT.shape[1])), start_B)


def put_whole(x_BX, new_BT, start_B):
    """x_BX with all of each row's new columns from its own start on."""
    put_row = lambda row, new, start: jax.lax.dynamic_update_slice_in_dim(row, new, start, 0)  # noqa: E731
    return jax.vmap(put_row)(x_BX, new_BT, start_B)
