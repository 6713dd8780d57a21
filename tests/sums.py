"""The sums in a traced program, wherever they stand in it. Values on CPU do not say what those are computed in: there
bfloat16 is float32 until it is stored.
"""

from collections.abc import Iterator

import jax
import numpy as np

_ADDING = ("psum", "psum_invariant", "reduce_scatter", "scatter-add")


def equations(jaxpr) -> Iterator:
    """Every equation, also of what is called, looped over or computed by each device."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def narrow_sums(function, *args, longest: int) -> list[str]:
    """Those in bfloat16 as jax traces a function, but for products that sum over at most `longest`."""
    found = []
    for equation in equations(jax.make_jaxpr(function)(*args)):
        name, summed = equation.primitive.name, 2 if equation.primitive.name in _ADDING else 0
        if name == "dot_general":
            axes = equation.params["dimension_numbers"][0][0]
            summed = np.prod([equation.invars[0].aval.shape[axis] for axis in axes]) / longest
        elif name == "reduce_sum":
            summed = np.prod([equation.invars[0].aval.shape[axis] for axis in equation.params["axes"]])
        elif name == "scatter-add" and equation.params["unique_indices"]:
            summed = 0
        narrow = [x.aval for x in equation.outvars if getattr(x.aval, "dtype", None) == jax.numpy.bfloat16]
        found += [f"{name} {aval.str_short()}" for aval in narrow if summed > 1]
    return found
