"""Decoding programs are many and small here: compiling them takes the time, so the compiler tries less hard."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="package")
def compile_quickly():
    """The optimising compiler's programs are those of the parity tests and of every command."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
