"""What decoding leaves to the machine: how its matrices lie, attention over the cache, and the cache's update.

Chosen once, when a model is made ready for decoding (`choose`); modes and layers do not know of it.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from edlm_jax.attention import Pattern, Sight, attend_cached, plan_attention, same_segment
from edlm_jax.models.lora import DECODED_ADAPTERS
from edlm_jax.models.spec import ModelSpec
from edlm_jax.models.transformer import Transformer
from edlm_jax.parallel import cpu
from edlm_jax.parallel.devices import platform, usable_cores
from edlm_jax.parallel.sharding import DECODING, constrain, letters

_QUERIES = 512  # of a prompt at a time, on CPU
_CACHED = 16 * 2**20  # bytes of weights that lie in a CPU's last cache, where each core may read them for itself
_ROWS = 4  # of a part at the least


@dataclass(frozen=True)
class Xla:
    """XLA's own, wherever it runs; on a mesh rows lie over `data`, heads and matrices over `tensor`."""

    # Do attention and the cache's update read tables of pages? Else each layer of a step would gather them.
    pages: ClassVar[bool] = False

    def lay(self, name: str, w):
        """A parameter of the laid out model as it is held; the letters of its name say which axes it has."""
        return constrain(w, letters(name), DECODING)

    def only(self, wanted_BT, weights, mask_BTS=None):
        """Weights and mask of a forward of which nobody reads other columns; here these cost what all do."""
        return weights, mask_BTS

    def parts(self, rows: int, weight_bytes: int) -> int:
        """Of how many programs, each with as many of the rows, a decoding is to be made, run beside one another."""
        return 1

    def attend(self, q_BTNH, k_BKSH, v_BKSH, mask_BTS, table_BG=None):
        """Attention over a cache under a mask; `table_BG` names the pages of rows, if it is in pages."""
        assert table_BG is None
        return attend_cached(q_BTNH, k_BKSH, v_BKSH, mask_BTS)

    def attend_prompt(self, spec: ModelSpec, pattern: Pattern, segments_BT):
        """The attention (q_BTNH, k_BTKH, v_BTKH) -> out_BTNH of whole rows under a pattern."""
        B, T = segments_BT.shape
        return plan_attention(Sight(pattern, B, T, T, segments_BT, segments_BT), (spec.num_heads, spec.num_kv_heads))

    def write(self, k_BKSH, v_BKSH, new_k_BTKH, new_v_BTKH, start, where_BT, table_BG=None):
        """Both caches with new columns from `start` on, an int or int32[B], where `where_BT` (None: everywhere)."""
        assert table_BG is None
        written = (write(k_BKSH, new_k_BTKH, start, where_BT), write(v_BKSH, new_v_BTKH, start, where_BT))
        return tuple(constrain(x_BKSH, "BK__", DECODING) for x_BKSH in written)


@dataclass(frozen=True)
class CpuKernels(Xla):
    """In C++, for float32 on one CPU device: what a column gets does not depend on the columns and rows beside it."""

    pages: ClassVar[bool] = True
    attend = staticmethod(cpu.attend)
    write = staticmethod(cpu.write)

    def lay(self, name: str, w):
        """Matrices are packed for the product."""
        summed = {"qkv_DKMH": 1, "o_NHD": 2, "gate_up_DPF": 1, "down_FD": 1, "head_DV": 1}
        if name in DECODED_ADAPTERS:
            return cpu.pack(w, w.ndim - 1) if name.endswith("R") else cpu.pack_low(w)
        return cpu.pack(w, summed[name]) if name in summed else cpu.Scale(w) if "norm" in name else w

    def only(self, wanted_BT, weights, mask_BTS=None):
        """Other columns take no product and see nothing."""
        if mask_BTS is not None:
            mask_BTS = mask_BTS & wanted_BT[..., None]
        packed = lambda w: isinstance(w, cpu.Packed)  # noqa: E731
        told = lambda w: replace(w, wanted_BT=wanted_BT) if packed(w) else w  # noqa: E731
        return jax.tree.map(told, weights, is_leaf=packed), mask_BTS

    def parts(self, rows: int, weight_bytes: int) -> int:
        """One a core, since cores that wait for each other at every product lose a third of it.

        But weights that come from memory, all that rows have in common, are read once for all of them.
        """
        parts = max(min(usable_cores(), rows // _ROWS), 1) if weight_bytes <= _CACHED else 1
        return next(count for count in range(parts, 0, -1) if rows % count == 0)

    def attend_prompt(self, spec: ModelSpec, pattern: Pattern, segments_BT):
        """So many queries at a time: a mask of all of them would have the square of the prompt's length."""
        T = segments_BT.shape[1]
        Q = min(T, _QUERIES)

        def seen(columns_Q):
            allowed_QT = pattern.allowed(columns_Q[:, None], jnp.arange(T)[None])
            return allowed_QT[None] & same_segment(segments_BT[:, columns_Q], segments_BT)

        if Q == T:
            mask_BTT = seen(jnp.arange(T))
            return lambda q, k, v: cpu.attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask_BTT)

        def attend_all(q, k, v):
            k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
            some = lambda columns_Q: cpu.attend(q[:, columns_Q], k, v, seen(columns_Q))  # noqa: E731
            # The last ones stand in for those that fill the last turn.
            columns_IQ = jnp.minimum(jnp.arange(-(-T // Q) * Q), T - 1).reshape(-1, Q)
            out_BIQNH = jax.lax.map(some, columns_IQ).swapaxes(0, 1)
            return out_BIQNH.reshape(len(q), -1, *q.shape[2:])[:, :T]

        return attend_all


def choose(model: Transformer) -> Xla:
    """The backend of a model's arrays as they lie; of a model that is only traced, XLA."""
    arrays = jax.tree.leaves(nnx.state(model))
    here = not any(isinstance(x, jax.core.Tracer) for x in arrays)
    return expected(model.dtype, here and all(len(x.sharding.device_set) == 1 for x in arrays))


def expected(dtype, alone: bool) -> Xla:
    """The backend of a model that computes in this dtype, with its arrays on one device if they are `alone`."""
    fits = alone and platform() == "cpu" and jnp.dtype(dtype) == jnp.float32
    return CpuKernels() if fits and cpu.available() else Xla()


def describe(backend: Xla, dtype) -> str:
    """Whose products these are, for a person who measures them."""
    if isinstance(backend, CpuKernels):
        return f"CPU kernels ({cpu.instructions()})"
    wanted = platform() == "cpu" and jnp.dtype(dtype) == jnp.float32
    return "XLA, for this installation found no C++ compiler to build the CPU kernels with" if wanted else "XLA"


def write(cache_BKSH, new_BTKH, start, where_BT):
    """A cache with new columns from `start` on, an int or int32[B], where `where_BT` (None: everywhere)."""
    new_BKTH = new_BTKH.swapaxes(1, 2).astype(cache_BKSH.dtype)
    T = new_BKTH.shape[2]

    def row(cache_KSH, new_KTH, start, where_T):
        old_KTH = jax.lax.dynamic_slice_in_dim(cache_KSH, start, T, axis=1)
        new_KTH = jnp.where(where_T[None, :, None], new_KTH, old_KTH)
        return jax.lax.dynamic_update_slice_in_dim(cache_KSH, new_KTH, start, axis=1)

    where_BT = jnp.broadcast_to(True if where_BT is None else where_BT, new_BTKH.shape[:2])
    if cache_BKSH.shape[0] == 1:  # no batch to vectorise: a plain slice update instead of a scatter
        return row(cache_BKSH[0], new_BKTH[0], jnp.reshape(start, ()), where_BT[0])[None]
    return jax.vmap(row, in_axes=(0, 0, None if jnp.ndim(start) == 0 else 0, 0))(cache_BKSH, new_BKTH, start, where_BT)
