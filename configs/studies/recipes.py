"""Other ways to make a block decoder of an AR model, at the paper's steps and rows.

MARS (arXiv 2604.07023; 7B, mean of six tasks): AR fine-tuning 56.6, its all-mask blocks that are causal inside, with
the AR loss, 58.1 one token at a time and 56.8 at 1.68 tokens a forward. BARD (arXiv 2604.16514; 4B) lets blocks grow
from 4 to 32; its noise is masks, random tokens and none at once. Dream (arXiv 2508.15487) attends both ways and weighs
a token by what stands near it; DiffuLLaMA (arXiv 2410.17891) by 1/t. Its 7B model, as here, goes straight to full
attention, without annealing.

The paper (arXiv 2512.14067) finds clean context better than attention both ways, and has no study of the others.

Here: the quickstart's model and data, a quarter of its steps.

    edlm study --config=configs/studies/recipes.py --workdir=runs/studies/recipes

Not yet run: 21 cells.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from edlm_jax.studies.cells import study_config

QUICKSTART = runpy.run_path(str(Path(__file__).parents[1] / "quickstart.py"))["get_config"]
STEPS = QUICKSTART().steps // 4
MARS = {
    "objective.pattern": "causal_block",
    "objective.alignment": "shifted",
    "objective.noise": "full_masks",
    "objective.diffusion_weight": 0.0,
    "objective.cross_entropy_weight": 1.0,
    "objective.ar_weight": 1.0,
}
BOTH_WAYS = {
    "objective.pattern": "bidirectional",
    "objective.alignment": "shifted",
    "objective.half_life": None,
    "objective.noisy_length": 0,
}


def get_config() -> ConfigDict:
    """The quickstart, shorter, decoded by the paper's mode, by MARS's and one by one."""
    c = study_config(QUICKSTART())
    c.base.steps = STEPS
    c.base.checkpoint.keep_last = 1
    c.base.evaluation.thresholds = (1.0, 0.95, 0.8)
    c.eval_modes = ("diffusion", "mars", "ar")
    return c


def sweep(add) -> None:
    """The paper's recipe and those of others."""
    add("paper", {})
    add("MARS", MARS)
    add("MARS without the AR loss", MARS | {"objective.ar_weight": 0.0})
    add("BARD: blocks of 2, 4, then 8", {"objective.curriculum": ((2, STEPS // 4), (4, STEPS // 4))})
    add("BARD: mixed noise", {"objective.noise": "mixed"})
    weights = {"objective.context_adaptive_weight": 1.0, "objective.diffusion_weight": 0.0}
    add("Dream: both ways, weighed by context", BOTH_WAYS | weights)
    add("DiffuLLaMA: both ways, weighed by 1/t", BOTH_WAYS)
