"""`jax.jit` for decoding programs: on CPU with the compiler settings that measured best for small products."""

import functools
from collections.abc import Callable

import jax

# XLA's YNN fusions win on the large products of training; on the small ones of decoding Eigen is 8 to 12 % faster.
# Sums over a width of hundreds, split into windows, cost two loops instead of one: 2 to 4 % of a forward of 8 or 16.
_ON_CPU = {"xla_cpu_experimental_ynn_fusion_type": "", "xla_disable_hlo_passes": "tree_reduction_rewriter"}


def compiled(**options) -> Callable[[Callable], Callable]:
    """A decorator: jits at the first call, when the backend is known. Options as for `jax.jit`."""

    def decorate(function):
        jitted = functools.cache(lambda: jax.jit(function, compiler_options=_compiler_options(), **options))
        call = functools.wraps(function)(lambda *args, **kwargs: jitted()(*args, **kwargs))
        call.function = function  # to be lowered for devices that are not here
        call.num_programs = lambda: jitted()._cache_size()  # jax 0.10.2 counts them nowhere else
        return call

    return decorate


@functools.cache
def _compiler_options() -> dict[str, str] | None:
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda x: x, compiler_options=_ON_CPU).lower(0.0).compile()
    except Exception:  # a jaxlib that does not know the option
        return None
    return _ON_CPU
