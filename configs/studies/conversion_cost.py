"""What a conversion costs: accuracy over training tokens, by what is learned from them.

The paper's recipe (arXiv 2512.14067) takes 25 to 500 billion tokens. FLARE (arXiv 2606.01774) trains an AR stream with
two complementary views, shifted, in blocks of 4, each token once in each, on 10; OPDLM (arXiv 2606.06712) learns the AR
rows' distributions instead of the corpus' tokens and takes 0.07.

Here: the quickstart's model and data, from a sixteenth of its steps to all of them, at equal steps and rows. The rows
that KL learns from are those of the model that is trained, held by an AR loss at weight 1: it trains all weights, so
that no other copy of them is at hand.

    edlm study --config=configs/studies/conversion_cost.py --workdir=runs/studies/conversion_cost

Hardware: one core of an AMD EPYC beside other work, one with AVX-512 for the first two arms (43 and 50 minutes), an
older one with AVX2 for the others (108 each); 4 of 12 cells so far, one seed of each arm. "step" counts steps of 1024
clean tokens.

Result, of one seed each, not yet with errors. What the shift gives is there at once: after a sixteenth of the steps
FLARE's recipe has 0.86 of the answers one by one and shifted KL 0.71, where the paper's and KL at the same position
have 0.06 and 0.07. FLARE's levels off there: after all steps it has 0.83 at 3.05 tokens a forward (threshold 0.9).
Shifted KL goes on: 0.90 at 4.39, where the paper's has 0.87 at 4.12. At 3 tokens a forward, between thresholds, the
paper's and shifted KL end at 0.89; with a quarter of the steps they have 0.48 and 0.73, with half 0.77 and 0.84. So no
recipe reaches the paper's final accuracy there with a third of its tokens. Not yet run: two more seeds of each.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from edlm_jax.studies.cells import study_config

CONFIGS = Path(__file__).parents[1]
QUICKSTART = runpy.run_path(str(CONFIGS / "quickstart.py"))["get_config"]
FLARE, OPDLM = (runpy.run_path(str(CONFIGS / f"quickstart_{name}.py"))["CHANGES"] for name in ("flare", "opdlm"))
STEPS = QUICKSTART().steps


def get_config() -> ConfigDict:
    """The quickstart, measured on its way; one peak of the learning rate, which does not know where an arm ends."""
    c = study_config(QUICKSTART())
    c.base.optimizer.schedule = "constant"
    c.base.optimizer.learning_rate = 1e-3
    c.base.evaluation.thresholds = (1.0, 0.9, 0.8, 0.65)
    c.eval_steps = tuple(STEPS // part for part in (16, 8, 4, 2, 1))
    c.x = "step"
    return c


def sweep(add) -> None:
    """The paper's recipe, and three that keep the AR stream."""
    add("paper: ce / t, same position", {})
    add("FLARE: AR + two views, blocks of 4", FLARE)
    add("KL to the AR rows", OPDLM)
    add("KL to the AR rows, shifted", OPDLM | {"objective.alignment": "shifted"})
