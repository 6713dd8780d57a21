"""Adapters against full training: what of the conversion fits into a low rank, and what that saves.

The paper's comparison (arXiv 2512.14067; Qwen2.5-1.5B, block-causal with clean context, same position, mean of six
code and mathematics benchmarks), adapters on all linears of attention and FFN, embedding, norms and head trained:

    AR, unconverted    41.79
    full training      38.41
    rank 64            30.78
    rank 16            27.93

Here: the quickstart's model and data, an eighth of its steps; its matrices are 96 to 512 wide. Adapters often want a
higher learning rate, which the paper does not tell, so they run at its rate and at three times that rate. Beside the
accuracy: seconds of the training step, bytes of parameters, moments and gradients, and the peak that the compiler plans
for the step.

    edlm study --config=configs/studies/lora.py --workdir=runs/lora

Hardware and result: not yet run; 15 cells of an estimated 2 minutes on the quickstart's two cores.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from edlm_jax.studies.cells import study_config

QUICKSTART = runpy.run_path(str(Path(__file__).parents[1] / "quickstart.py"))["get_config"]
RATE = QUICKSTART().optimizer.learning_rate


def get_config() -> ConfigDict:
    """The quickstart, its training step timed."""
    c = study_config(QUICKSTART())
    c.base.steps //= 8
    c.timed_steps = 20
    c.base.checkpoint.keep_last = 1
    c.base.evaluation.thresholds = (1.0, 0.9)
    return c


def sweep(add) -> None:
    """Everything, then ranks at two rates."""
    add("full training", {})
    for rank in (64, 16):
        for name, rate in (("", RATE), (", 3 x the rate", 3 * RATE)):
            add(f"rank {rank}{name}", {"lora.rank": rank, "optimizer.learning_rate": rate})
