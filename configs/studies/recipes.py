"""Other ways to make a block decoder of an AR model, at the paper's steps and rows.

MARS (arXiv 2604.07023; 7B, mean of six tasks): AR fine-tuning 56.6, its all-mask blocks that are causal inside, with
the AR loss, 58.1 one token at a time and 56.8 at 1.68 tokens a forward. BARD (arXiv 2604.16514; 4B) lets blocks grow
from 4 to 32; its noise is masks, random tokens and none at once. Dream (arXiv 2508.15487) attends both ways and weighs
a token by what stands near it; DiffuLLaMA (arXiv 2410.17891) by 1/t. Its 7B model goes straight to full attention; its
smaller ones' grows from causal, by a random share of pairs a step.

The paper (arXiv 2512.14067) finds clean context better than attention both ways, and has no study of the others.

Here: the quickstart's model and data, a quarter of its steps.

    edlm study --config=configs/studies/recipes.py --workdir=runs/studies/recipes

Hardware: one core of an AMD EPYC beside other work; 24 cells of 2 to 4 minutes, up to 13 where others used the cores.
The annealed ones ran on a later EPYC (Zen 5).

Result, accuracy @ tokens a forward after 400 steps. MARS's recipe, decoded by its own mode, is far ahead: 0.913 ± 0.004
@ 2.69 at threshold 0.95 and 0.869 ± 0.009 @ 3.65 at 0.8, where the paper's, by its own, has 0.799 ± 0.007 @ 1.94 and
0.714 ± 0.011 @ 2.69. AR decoding stays as it was (0.996 ± 0.001; 0.157 by the paper's, which does not train it). The AR
loss is worth it, as its authors say: without it one token at a time has 0.811 ± 0.013, and 0.835 ± 0.009 @ 2.69. What
this costs is the mode: plain diffusion, which reads both ways, has 0.618 @ 2.30 from those weights.

Growing blocks help one by one and at 0.95 (0.837 ± 0.009 @ 1.98), at 0.8 no longer. Mixed noise costs 0.2. Attention
both ways is as accurate as clean context at 0.95 and slower there (0.816 ± 0.004 @ 1.68 with Dream's weights, 0.799 ±
0.005 @ 1.61 with 1/t), behind at 0.8; Dream's weights are a little ahead of 1/t. So is attention that grows over half
of the steps: 0.816 ± 0.004 @ 1.64, and 0.676 ± 0.007 for 0.653 ± 0.008 at 0.8, 2.5 and 2.1 standard errors. Whether all
this holds after more steps is not known, but for MARS's: configs/quickstart_mars.py.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from edlm_jax.studies.cells import study_config

CONFIGS = Path(__file__).parents[1]
QUICKSTART = runpy.run_path(str(CONFIGS / "quickstart.py"))["get_config"]
MARS = runpy.run_path(str(CONFIGS / "quickstart_mars.py"))["CHANGES"]
STEPS = QUICKSTART().steps // 4
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
    add("DiffuLLaMA: annealed from causal, weighed by 1/t", BOTH_WAYS | {"objective.anneal_steps": STEPS // 2})
