"""The quickstart's model learns to decode several blocks at once: noise in groups of them (MultiTF, arXiv 2606.29215).

    edlm train --config=configs/quickstart_groups.py --workdir=runs/groups
    edlm export --workdir=runs/groups --out=runs/groups/model
    edlm generate --model=runs/groups/model --mode=multi_block:threshold=0.95 --prompt='add 3+4 9+8 0+5 ->'

Measured: one run of 300 steps on two cores of an AMD EPYC beside other work, and one as long without groups (the last
row: `--config.objective.noise=masks --config.objective.group=1`). Of 512 held-out prompts (`python -m
tests.benchmarks.modes runs/groups/model 512 diffusion:threshold=0.95 multi_block:threshold=0.95,opens=0.1 ...`)
accuracy @ tokens per forward:

    threshold     0.95, diffusion   multi_block, opens=0.1   opens=0.5      0.8, diffusion   multi_block, opens=0.1
    groups of 2   0.982 @ 4.64      0.969 @ 5.02             0.975 @ 4.98   0.957 @ 5.56     0.943 @ 5.83
    masks         0.982 @ 4.67      0.969 @ 5.03             0.973 @ 5.00   0.947 @ 5.43     0.922 @ 5.82

At 0.95 there is no difference. At 0.8 groups are ahead by 1 to 2 points, where a difference has a standard error of
1.5: not shown by one run. Three seeds of 600 steps show it (configs/studies/second_stage.py). Answers have 11.8
tokens, one or two blocks, so few have two in flight. The model that both start from has 0.986 @ 4.74, and 0.959 @ 5.11
by opens=0.1. The 400 steps below: not yet run.
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
