"""An AR loss beside the diffusion loss: what it does for diffusion, for AR decoding and for self-speculation.

Efficient-DLM (arXiv 2512.14067) has no AR term. Its successor (arXiv 2607.05722; 8B, 25B tokens) makes the clean
stream token-causal and adds the AR loss on it, L_AR + 0.3 L_diffusion: mean accuracy 62.80 without, 70.28 with it. The
same weights then draft a block by diffusion and verify it causally: 5.99 tokens a forward (linear) and 6.38 (quadratic)
at equal accuracy.

Here: the quickstart's model and data, an eighth of its steps. AdamW does not see the size of a loss, only the ratio
of the two counts. Self-speculation gives the tokens of greedy AR decoding, so its accuracy is that of "ar"; what it
gains is in the tokens per forward. AR decoding after a block-causal clean stream is what nobody trained: it says what
conversion forgets.

    edlm study --config=configs/studies/joint.py --workdir=runs/joint

Hardware and result: not yet run; 15 cells of an estimated 2 minutes on the quickstart's two cores.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from edlm_jax.studies.cells import study_config

QUICKSTART = runpy.run_path(str(Path(__file__).parents[1] / "quickstart.py"))["get_config"]
WEIGHTS = {  # (AR, diffusion)
    "diffusion alone": (0.0, 1.0),
    "0.3 AR + diffusion": (0.3, 1.0),
    "AR + diffusion": (1.0, 1.0),
    "AR + 0.3 diffusion": (1.0, 0.3),  # the successor's
}


def get_config() -> ConfigDict:
    """The quickstart, decoded in every way that a causal clean stream allows."""
    c = study_config(QUICKSTART())
    c.base.steps //= 8
    c.eval_modes = ("diffusion", "ar", "self_speculation", "quadratic_speculation")
    c.eval_losses = (dict(kind="tasks", split="test", seed=1, size=1000),)
    c.base.checkpoint.keep_last = 1
    c.base.evaluation.thresholds = (1.0, 0.9)
    return c


def sweep(add) -> None:
    """The quickstart as it is, then a token-causal clean stream with more and more of the AR loss."""
    add("block-causal clean stream", {})
    for name, (ar, diffusion) in WEIGHTS.items():
        weights = {"objective.ar_weight": ar, "objective.diffusion_weight": diffusion}
        add(f"token-causal, {name}", {"objective.pattern": "semi_block"} | weights)
