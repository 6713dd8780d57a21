"""The quickstart's blocks grow from 4 to 8, 16, 32, and the model of blocks of 4 teaches them (BARD, arXiv 2604.16514).

    edlm train --config=configs/quickstart.py --workdir=runs/bard4 --config.objective.block_length=4
    edlm export --workdir=runs/bard4 --out=runs/bard4/model
    edlm train --config=configs/quickstart_bard.py --workdir=runs/bard
    edlm export --workdir=runs/bard --out=runs/bard/model

BARD (4B, distilled in blocks of 8, 16 and 32 from an 8B model in blocks of 4) has 1.0 of cross-entropy and 0.5 of KL to
the teacher's 16 best tokens, of the same noise, which the teacher sees in its own blocks; an AR teacher hurt there.
Here the terms weigh the same, cross-entropy is the paper's (ce / t, arXiv 2512.14067), and so are the masks: BARD hides
0.1 to 0.5 of a row. Without the teacher: `--config.objective.teacher= --config.objective.teacher_weight=0`. A step with
it took 1.2 times as long (80 steps of each on one core beside other work).

Not yet run as it stands.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

QUICKSTART = runpy.run_path(str(Path(__file__).parent / "quickstart.py"))["get_config"]
MODEL = "runs/bard4/model"


def get_config() -> ConfigDict:
    """A third of the steps for each length."""
    c = QUICKSTART()
    c.steps = 1200
    c.init.path = MODEL
    c.init.mask_embedding = "keep"  # it was trained
    c.objective.curriculum = ((8, 400), (16, 400))
    c.objective.block_length = 32
    c.objective.teacher = MODEL
    c.objective.teacher_weight = 0.5
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup_steps = 20
    return c
