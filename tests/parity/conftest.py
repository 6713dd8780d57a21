"""The comparison with others runs what people run: programs with all of the compiler's optimisations."""

import jax

jax.config.update("jax_disable_most_optimizations", False)
