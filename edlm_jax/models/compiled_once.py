"""Methods of a model that outside `jax.jit` compile at their first call and not again."""

import functools
from collections.abc import Callable

import jax
from flax import nnx


def compiled_once(*static: str) -> Callable[[Callable], Callable]:
    """A decorator of a model's method: one program for all calls of equal shapes, `static` arguments and model class.

    A forward pass makes the functions that it scans over anew, so that jax by itself would compile at every call.
    Inside `jax.jit` it is as if this were not there.
    """

    def decorate(method):
        @functools.partial(jax.jit, static_argnames=("graphdef", *static))
        def run(graphdef, state, *args, **kwargs):
            return method(nnx.merge(graphdef, state), *args, **kwargs)

        @functools.wraps(method)
        def call(self, *args, **kwargs):
            return run(*nnx.split(self), *args, **kwargs)

        return call

    return decorate
