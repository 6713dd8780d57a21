"""Every mode of decoding from the same weights: what it keeps and how many tokens a forward it decodes.

Efficient-DLM (arXiv 2512.14067) decodes by plain diffusion. The other modes have papers of their own: self-speculation
5.99 tokens a forward and quadratic 6.38 at equal accuracy (arXiv 2607.05722; 8B), on the joint loss that trains this
study's weights, too. PSD (2605.15609) needs no training. DMax (2604.08302) and MARS (2604.07023) do: this study's
weights have not had it, so what it says of them is how they fare without.

Here: the quickstart's model and data, half of its steps, a token-causal clean stream with the AR loss at equal weight
(the joint study's third arm): the one training that serves all modes.

    edlm study --config=configs/studies/modes.py --workdir=runs/modes

Hardware and result: not yet run; 3 cells of an estimated 7 minutes.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from edlm_jax.decoding.modes import MODES
from edlm_jax.studies.cells import study_config

QUICKSTART = runpy.run_path(str(Path(__file__).parents[1] / "quickstart.py"))["get_config"]


def get_config() -> ConfigDict:
    """The joint study's weights, trained longer, in every mode at three thresholds."""
    c = study_config(QUICKSTART())
    c.base.steps //= 2
    c.base.objective.pattern = "semi_block"
    c.base.objective.ar_weight = 1.0
    c.eval_modes = tuple(MODES)
    c.base.checkpoint.keep_last = 1
    c.base.evaluation.thresholds = (1.0, 0.9, 0.65)
    return c


def sweep(add) -> None:
    """One arm: what is compared is decoding."""
    add("token-causal, AR + diffusion", {})
