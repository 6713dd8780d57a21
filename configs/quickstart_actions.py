"""A policy for a simulated arm of two joints, AR or decoded in blocks: actions as tokens (BlockVLA, arXiv 2605.13382).

    python -m edlm_jax.data.reach --out=runs/actions/train.jsonl --count=1000
    python -m edlm_jax.data.reach --out=runs/actions/test.jsonl --count=256 --split=test
    edlm train --config=quickstart_actions:ar --workdir=runs/actions/train_ar
    edlm export --workdir=runs/actions/train_ar --out=runs/actions/ar
    edlm train --config=quickstart_actions --workdir=runs/actions/train
    edlm export --workdir=runs/actions/train --out=runs/actions/model
    edlm evaluate --model=runs/actions/model --baseline=runs/actions/ar --task=reach --data=runs/actions/test.jsonl

The AR policy begins with random weights and the quickstart's tokenizer, in which a bin is a token. A prompt is not
learned and gets no noise, as everywhere.

Measured on two virtual cores of an Intel Xeon (AVX-512) beside other work: the AR policy reaches 0.969 of 256 held-out
targets; its conversion is the arm "blocks of 8" of configs/studies/actions.py.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

CONFIGS = Path(__file__).parent
QUICKSTART = runpy.run_path(str(CONFIGS / "quickstart.py"))
SHAPE = runpy.run_path(str(CONFIGS / "quickstart_ar.py"))["SHAPE"]
SMALLER = dict(hidden_size=96, num_hidden_layers=2, head_dim=24, intermediate_size=256)  # 0.3M parameters
TRAIN, TEST, AR_MODEL = "runs/actions/train.jsonl", "runs/actions/test.jsonl", "runs/actions/ar"


def get_config(stage: str = "diffusion") -> ConfigDict:
    """The quickstart's settings on chunks of actions; `ar` is the first stage, what it makes is converted."""
    if stage not in ("ar", "diffusion"):
        raise ValueError(f"stage {stage!r} is unknown; choose one of ar, diffusion")
    c = QUICKSTART["get_config"]()
    c.data.tokenizer = QUICKSTART["AR_MODEL"]
    c.data.sources = (dict(kind="jsonl", path=TRAIN),)
    c.data.eval_sources = ()
    c.optimizer.warmup_steps = 20
    c.optimizer.learning_rate = 4e-3
    c.evaluation.tasks = (dict(task="reach", path=TEST),)
    c.evaluation.thresholds = (1.0, 0.9, 0.6, 0.3, 0.0)
    c.evaluation.batch_size = 256
    if stage == "ar":
        c.steps = 800
        c.init.path, c.init.mask_embedding, c.init.hf_config = "", "keep", ConfigDict(SHAPE | SMALLER)
        c.objective.update(pattern="causal", noisy_length=0)
    else:
        c.steps = 400
        c.init.path = AR_MODEL
        c.objective.alignment = "shifted"
    return c
