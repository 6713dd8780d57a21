"""The comparison with others runs what people run: programs with all of the compiler's optimisations."""

import os

import jax

# XLA reads its flags with the first program.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "").removesuffix(" --xla_cpu_use_fusion_emitters=false")
jax.config.update("jax_disable_most_optimizations", False)
