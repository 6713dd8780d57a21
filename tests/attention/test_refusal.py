"""A GPU that refuses our kernels computes in tiles of plain JAX, and says so once."""

import warnings

import jax
import numpy as np
import pytest

from edlm_jax.attention import CleanContext, attend_dense, refusal
from tests.attention.planned import attend
from tests.seeds import fresh_rng


@pytest.fixture
def refusing_gpu(monkeypatch):
    """A CPU that is taken for a GPU: Triton's kernels do not compile on it."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    refusal.refusal.cache_clear()
    yield
    refusal.refusal.cache_clear()


def test_the_way_without_kernels_is_exact_and_said_once(refusing_gpu):
    rng, pattern = fresh_rng(), CleanContext(320, 16)
    q, k, v = (rng.normal(size=(1, 640, heads, 16)).astype(np.float32) for heads in (4, 2, 2))
    with pytest.warns(UserWarning, match="no attention kernels in tiles of 64 x 64; tiles of plain JAX.*: .*CPU"):
        found = attend(q, k, v, pattern=pattern)
    np.testing.assert_allclose(found, attend_dense(q, k, v, pattern=pattern), atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attend(q, k, v, pattern=pattern)


def test_devices_that_are_not_here_are_not_asked():
    refusal.refusal.cache_clear()
    assert refusal.refusal() == ""
