"""The quickstart's model learns to decode several blocks at once: noise in groups of them (MultiTF, arXiv 2606.29215).

    edlm train --config=configs/quickstart_groups.py --workdir=runs/groups
    edlm export --workdir=runs/groups --out=runs/groups/model
    edlm generate --model=runs/groups/model --mode=multi_block:threshold=0.95 --prompt='add 3+4 9+8 0+5 ->'

Not yet run.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

QUICKSTART = runpy.run_path(str(Path(__file__).parent / "quickstart.py"))["get_config"]
MODEL = "runs/quickstart/model"


def get_config() -> ConfigDict:
    """The quickstart's rows, two blocks noisy at a time."""
    c = QUICKSTART()
    c.steps = 400
    c.init.path = MODEL
    c.init.mask_embedding = "keep"  # it was trained
    c.objective.update(noise="chain", group=2)
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup_steps = 20
    return c
