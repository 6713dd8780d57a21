"""Four CPU devices in one process, so that meshes can be tested; silent broadcasting of ranks is an error."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported: a test must not take somebody's accelerator
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads and forked workers do not mix

import jax

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
