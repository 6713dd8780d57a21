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

Hardware: two virtual CPU cores (Xeon, 2.5 GHz), one for this and one for another study; 15 cells of 3 to 13
minutes.

Result: agrees. Full training 0.448 ± 0.008 at one token a forward; rank 64 0.150 ± 0.014 and, at three times the rate,
0.368 ± 0.031; rank 16 0.120 ± 0.017 and 0.331 ± 0.045. Adapters lose to full training at either rate; that rank 64 is
better than rank 16 is within the errors. Memory: moments and gradients shrink to 60 % and 23 %, but the step's peak
grows to 120 % and 110 %: at this size nine tenths are what the forward pass keeps, and adapters add their own (the
peaks were compiled anew on an EPYC; those of the run left it out). Time: the table's seconds are from shared cores and
before the adapters' gradient was made quicker; by itself (`edlm bench train --config=configs/quickstart.py
--config.lora.rank=N`) a step takes 0.241 s, with rank 64 0.287 s and with rank 16 0.240 s. A matrix here is so narrow
that rank 64 adds half of its work again.
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
