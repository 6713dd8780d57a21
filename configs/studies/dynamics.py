"""What training brings when: accuracy from cautious to bold, and how far the weights move.

The paper reports (arXiv 2512.14067) that longer training keeps improving accuracy where few forwards are spent, and
that the weights drift from the AR model's more without clean context than with it, most under bidirectional attention,
and more with longer blocks; no table of numbers.

Here: the quickstart's model and data, a quarter of its steps, one noisy view of a row, checkpoints measured on the
way. The schedule is a constant rate after warm-up, so that a step's checkpoint does not depend on how long the run
goes on.

    edlm study --config=configs/studies/dynamics.py --workdir=runs/dynamics

Hardware: two cores of an AMD EPYC with AVX-512, a cell on one of them beside other work; 15 cells of 2 to 15 minutes.

Result: agrees, as far as so short a training says. From 200 to 400 steps clean context in blocks of 8 goes from 0.254 ±
0.026 to 0.487 ± 0.028 at one token a forward and, bolder, from 0.132 ± 0.013 @ 2.20 to 0.313 ± 0.021 @ 3.04: more right
with fewer forwards. Attention's weights move most under bidirectional attention (0.330 ± 0.002 after 400 steps;
block-causal 0.322 ± 0.001, clean context 0.320 ± 0.002: no gap between these two) and the more the longer the blocks
(0.313 ± 0.001, 0.320 ± 0.002, 0.331 ± 0.001 for 4, 8, 16). Drift grows alike in all arms and says little of accuracy:
blocks of 16 learn slowest (0.207 ± 0.004), blocks of 4 fastest (0.551 ± 0.029).
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from edlm_jax.studies.cells import study_config

QUICKSTART = runpy.run_path(str(Path(__file__).parents[1] / "quickstart.py"))["get_config"]
ARMS = {
    "bidirectional": {"objective.pattern": "bidirectional"},
    "block-causal": {"objective.pattern": "block_causal"},
    "clean context, blocks of 4": {"objective.block_length": 4},
    "clean context, blocks of 8": {},
    "clean context, blocks of 16": {"objective.block_length": 16},
}


def get_config() -> ConfigDict:
    """The quickstart, shorter, measured at 1/8, 1/4, 1/2 and all of its steps."""
    c = study_config(QUICKSTART())
    c.base.steps //= 4
    c.x = "step"
    c.eval_steps = tuple(c.base.steps // part for part in (8, 4, 2, 1))
    c.base.objective.noisy_length = 0  # one view of a row in every arm: patterns with one stream have no other
    c.base.optimizer.schedule = "constant"
    c.base.evaluation.thresholds = (1.0, 0.9, 0.6)
    return c


def sweep(add) -> None:
    """Patterns, and block lengths of the chosen one."""
    for name, changes in ARMS.items():
        add(name, changes)
