"""WIP"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

CONFIGS = Path(__file__).parent
QUICKSTART = runpy.run_path(str(CONFIGS / "quickstart.py"))
SHAPE = runpy.run_path(str(CONFIGS / "quickstart_ar.py"))["SHAPE"]
SMALL = dict(hidden_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=24)
TRAIN, TEST, AR_MODEL = "runs/actions/train.jsonl", "runs/actions/test.jsonl", "runs/actions/ar"


def get_config(stage: str = "diffusion") -> ConfigDict:
    """The AR policy, or its conversion."""
    c = QUICKSTART["get_config"]()
    c.data.tokenizer = QUICKSTART["AR_MODEL"]
    c.data.sources = (dict(kind="jsonl", path=TRAIN),)
    c.data.eval_sources = ()
    c.optimizer.warmup_steps = 20
    c.optimizer.learning_rate = 4e-3
    c.evaluation.tasks = (dict(task="reach", path=TEST),)
    c.evaluation.thresholds = (1.0, 0.9, 0.5, 0.2)
    c.evaluation.batch_size = 256
    if stage == "ar":
        c.init.path, c.init.mask_embedding = "", "keep"
        c.init.hf_config = ConfigDict(SHAPE | SMALL | dict(intermediate_size=256))
        c.objective.pattern = "causal"
        c.objective.noisy_length = 0
        c.steps = 800
    else:
        c.init.path = AR_MODEL
        c.objective.alignment = "shifted"
        c.steps = 400
    return c
