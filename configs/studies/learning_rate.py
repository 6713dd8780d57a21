"""How fast to convert: too slow leaves an AR model, too fast forgets it.

The paper's comparison of learning rates (arXiv 2512.14067; Qwen3-4B, mean accuracy):

    1e-4  50.95    3e-5  56.59    1e-5  60.63    3e-6  60.11    1e-6  54.56

Here: the quickstart's model and data, an eighth of its steps; its model is 2000 times smaller and its rates are higher.
The schedule ends at 1/200 of its peak in every arm. All cells share one compiled program.

    edlm study --config=configs/studies/learning_rate.py --workdir=runs/learning_rate

Hardware: two virtual CPU cores (Xeon, 2.5 GHz), one for this and one for another study; 15 cells of 2 to 3 minutes.

Result: agrees. Accuracy peaks in the middle and falls on both sides: 2e-3 (the quickstart's) and 6e-3 are alike, 0.448
± 0.008 and 0.436 ± 0.037 at one token a forward; a third of that, 6e-4, gives 0.076, ten times it, 2e-2, 0.025. After
so few steps a low rate has not yet left the AR model, so its side falls more steeply than the paper's does after 25B
tokens. Weight drift grows with the rate, from 0.05 of the weights' norm to all of it.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from edlm_jax.studies.cells import study_config

QUICKSTART = runpy.run_path(str(Path(__file__).parents[1] / "quickstart.py"))["get_config"]
RATES = (2e-4, 6e-4, 2e-3, 6e-3, 2e-2)


def get_config() -> ConfigDict:
    """The quickstart at one token a forward and at threshold 0.9."""
    c = study_config(QUICKSTART())
    c.base.steps //= 8
    c.x = "optimizer.learning_rate"
    c.base.checkpoint.keep_last = 1
    c.base.evaluation.thresholds = (1.0, 0.9)
    return c


def sweep(add) -> None:
    """The peak and, in proportion, the end."""
    for rate in RATES:
        add(f"{rate:g}", {"optimizer.learning_rate": rate, "optimizer.final_learning_rate": rate / 200})
