"""What each part of the method adds, one after the other.

The paper's path (arXiv 2512.14067; Qwen3-4B, blocks of 64, mean accuracy at one token a forward):

    bidirectional, shifted, uniform masking     44.59
    + blocks with clean context                 59.01
    + same position                             60.27
    + position-weighted masking                 62.02
    + 300B tokens instead of 25B                64.05

Here: the quickstart's model and data, an eighth of its steps. The step from one noise level a row to
position-weighted masking is taken in two, since it changes two things: each block gets a level of its own (half-life
infinity), then later tokens are masked more often. Two views of every response are our own addition. "Longer" has
twice the steps.

    edlm study --config=configs/studies/components.py --workdir=runs/components

Hardware: two cores of an AMD EPYC with AVX-512, a cell on one of them beside other work; 21 cells of 1 to 9 minutes.

Result: the first step and the last ones appear, two in the middle do not at so few steps. Clean context brings 0.761 ±
0.010 to 0.848 ± 0.006. Targets at the same position cost 53 points after 200 steps: an AR model has shifted ones, and
unlearning that takes 800 to 1600; after 3200 the same position leads (the alignment study). From there a noise level
for each block brings 5 points, masking later tokens more often takes them back (three standard errors; after 800 steps
it is ahead, the masking study), two views of every response bring 14, and twice the steps 36 more: 0.809 ± 0.004, and
at threshold 0.6 0.579 ± 0.010 @ 3.72 tokens a forward, where the path began with 0.346 ± 0.019 @ 2.30. Length of
training outweighs every other part here; in the paper it is one of several alike.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict, config_dict

from edlm_jax.studies.cells import study_config

QUICKSTART = runpy.run_path(str(Path(__file__).parents[1] / "quickstart.py"))["get_config"]
STEPS = QUICKSTART().steps // 8
PATH = (  # each changes what those before it have left
    ("bidirectional, shifted, uniform", {"objective.pattern": "bidirectional"}),
    ("+ blocks with clean context", {"objective.pattern": "clean_context"}),
    ("+ same position", {"objective.alignment": "same_position"}),
    ("+ a noise level for each block", {"objective.half_life": float("inf")}),
    ("+ later tokens masked more often", {"objective.half_life": 0.1}),
    ("+ two views", {"objective.noisy_length": 128}),
    ("+ longer", {"steps": 2 * STEPS}),
)


def get_config() -> ConfigDict:
    """Where the path begins, but for the pattern; at one token a forward and bolder."""
    c = study_config(QUICKSTART())
    c.base.steps = STEPS
    c.base.objective.half_life = config_dict.placeholder(float)  # None
    c.base.objective.alignment = "shifted"
    c.base.objective.noisy_length = 0
    c.base.checkpoint.keep_last = 1
    c.base.evaluation.thresholds = (1.0, 0.9, 0.6)
    return c


def sweep(add) -> None:
    """The parts, added up."""
    changes = {}
    for name, part in PATH:
        changes |= part
        add(name, changes)
