"""Port the AR model that the package brings along, convert it to block diffusion, evaluate both: the whole job, small.

    make quickstart        or        edlm convert --config=configs/quickstart.py --workdir=runs/quickstart
"""

from pathlib import Path

from ml_collections import ConfigDict

import edlm_jax
from edlm_jax.training.config import default_config

KINDS = ("count", "sums", "sort", "reverse", "brackets", "init", "record", "spell")  # what quickstart_ar solves
AR_MODEL = str(Path(edlm_jax.__file__).parent / "pretrained" / "quickstart_ar")  # made by configs/quickstart_ar.py


def get_config() -> ConfigDict:
    """quickstart_ar converted on the kind of data it was trained on."""
    c = default_config()
    c.dtype = "float32"  # bfloat16 is slower on most CPUs
    c.steps = 1000
    c.log_every = 25
    c.init.path = AR_MODEL
    c.init.mask_embedding = "mean"  # the slot was never trained
    c.objective.pattern = "clean_context"
    c.objective.block_length = 8
    c.objective.half_life = 0.1
    c.data.batch_size = 8
    c.data.length = 128
    c.data.sources = (
        dict(kind="tasks", kinds=KINDS, split="train", seed=2, weight=0.95),
        dict(kind="stdlib", split="train", weight=0.05),
    )
    c.data.eval_sources = (
        dict(kind="tasks", kinds=KINDS, split="test", seed=1, size=1000, weight=0.95),
        dict(kind="stdlib", split="test", weight=0.05),
    )
    c.optimizer.learning_rate = 2e-3
    c.optimizer.final_learning_rate = 1e-5
    c.optimizer.warmup_steps = 50
    c.checkpoint.every = 500
    c.evaluation.tasks = (dict(kind="tasks", kinds=KINDS, split="test", seed=3, size=512),)
    c.evaluation.thresholds = (1.0, 0.95, 0.9, 0.8, 0.7)
    c.evaluation.batch_size = 64
    c.evaluation.timed_prompts = 16
    return c
