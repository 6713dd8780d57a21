"""Every mode of decoding from the same weights: what it keeps and how many tokens a forward it decodes.

Efficient-DLM (arXiv 2512.14067) decodes by plain diffusion. The other modes have papers of their own: self-speculation
5.99 tokens a forward and quadratic 6.38 at equal accuracy (arXiv 2607.05722; 8B), on the joint loss that trains this
study's weights, too. PSD (2605.15609) needs no training. DMax (2604.08302) and MARS (2604.07023) do: this study's
weights have not had it, so what it says of them is how they fare without.

Here: the quickstart's model and data, half of its steps, a token-causal clean stream with the AR loss at equal weight
(an arm of the joint study): the one training that serves all modes.

    edlm study --config=configs/studies/modes.py --workdir=runs/modes

Hardware: two cores of an AMD EPYC with AVX-512, a cell on one of them beside other work; 3 cells of 4 to 6 minutes.

Result: verified drafts win. Quadratic self-speculation decodes 3.71 ± 0.04 tokens a forward at the 0.997 ± 0.001 of AR
decoding, linear 2.32 ± 0.02, where plain diffusion has 0.934 ± 0.006 @ 3.59; a quadratic forward is C + 1 times as
wide. PSD gains forwards (4.13 for 3.59 at threshold 0.9) and loses accuracy (0.905 ± 0.009): its guesses stand on
agreement, not on confidence. MARS, left to right, has 0.863 ± 0.003 @ 3.54 without its own training. DMax falls apart
without it, as its paper says: what a token's own place predicts was never trained, so revising changes what was right
(0.423 ± 0.023; 0.000 at threshold 1, where each token is revised most often).
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
