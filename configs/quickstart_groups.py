"""The quickstart's model learns to decode several blocks at once: noise in groups of them (MultiTF, arXiv 2606.29215).

    edlm train --config=configs/quickstart_groups.py --workdir=runs/groups
    edlm export --workdir=runs/groups --out=runs/groups/model
    edlm generate --model=runs/groups/model --mode=multi_block:threshold=0.95 --prompt='add 3+4 9+8 0+5 ->'

Measured: one run, and one as long without groups (`--config.objective.noise=masks --config.objective.group=1`), 2 to 4
minutes each of one core of an AMD EPYC (Zen 5) beside other work. Of 512 held-out prompts (`python -m
tests.benchmarks.modes runs/groups/model 512 diffusion:threshold=0.95 multi_block:threshold=0.95 ...`; not kept as JSON)
accuracy @ tokens per forward:

    threshold     0.95, diffusion  multi_block   anywhere=yes  0.8, diffusion  multi_block   anywhere=yes
    groups of 2   0.984 @ 4.89     0.982 @ 5.15  0.980 @ 5.18  0.965 @ 5.62    0.953 @ 5.90  0.951 @ 5.93
    masks         0.982 @ 4.83     0.984 @ 5.07  0.959 @ 5.14  0.957 @ 5.54    0.945 @ 5.85  0.928 @ 5.93
    neither       0.986 @ 4.74     0.982 @ 5.07  0.959 @ 5.10  0.955 @ 5.42    0.949 @ 5.68  0.938 @ 5.84

A share has a standard error of 0.006 (at 0.98) to 0.01. Groups teach what `anywhere` asks for: tokens of a block ahead
that stand apart from the block before them. Taken from the left alone, which is what `multi_block` does otherwise, they
are as good without that training. Three seeds of 600 steps, `anywhere`: configs/studies/second_stage.py. Answers have
12 tokens, one or two blocks, so few have two in flight.
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
