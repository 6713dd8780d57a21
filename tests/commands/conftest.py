"""A config small enough to convert in a test."""

import jax
import pytest

CONFIG = """
from edlm_jax.training.config import default_config

def get_config():
    c = default_config()
    c.dtype = "float32"
    c.steps = 3
    c.log_every = 1
    c.init.path = {ar_dir!r}
    c.init.mask_embedding = "mean"
    c.objective.block_length = 4
    c.data.batch_size = 8  # a row for each device, where there are eight
    c.data.length = 128
    c.data.sources = (dict(kind="tasks", kinds=("sort", "sums")),)
    c.data.eval_sources = (dict(kind="tasks", kinds=("sort", "sums"), split="test", size=8),)
    c.optimizer.learning_rate = 1e-2
    c.checkpoint.every = 0
    c.evaluation.tasks = (dict(kind="tasks", kinds=("sort", "sums"), split="test", seed=3, size=4),)
    c.evaluation.thresholds = (1.0, 0.0)
    c.evaluation.batch_size = 1  # the shape that is timed too: fewer programs to compile
    c.evaluation.timed_prompts = 2
    return c
"""


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Compiling for all eight would take most of the time of what is run here; tests/training/ has them."""
    devices = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda: devices[:1])


@pytest.fixture
def tiny_config(tiny_ar_dir, tmp_path) -> str:
    """The path of a config file that converts the tiny model in three steps."""
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG.format(ar_dir=str(tiny_ar_dir)))
    return str(path)
