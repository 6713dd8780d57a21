"""Converted on one domain, measured on the other: is it the data that is learned, or a way of decoding?

The paper (arXiv 2512.14067) converts on a mixture of text, mathematics and code, and publishes no comparison of this
kind.

Here: the quickstart's model, which was trained on generated tasks and the standard library's sources, converted on the
one, the other, or both as in the quickstart, each for an eighth of its steps. Exact match is on the tasks; losses are
on held-out tasks and held-out code. Code has no prompts, so every token is learned from and rows have no second view.

    edlm study --config=configs/studies/generalisation.py --workdir=runs/generalisation

Hardware: two cores of an AMD EPYC with AVX-512, a cell on one of them beside other work; 9 cells of 1 to 2 minutes.

Result: it is the data that is learned, at this scale. Converted on code, the model solves no task at all, with a
diffusion loss on tasks of 5.83 ± 0.10 where the other two have 1.43; converted on tasks, its diffusion loss on code is
8.66 ± 0.16, with a little code 5.80 ± 0.04, on code alone 4.89 ± 0.04. The weights move equally far. AR losses show the
same, milder: code alone keeps the AR model's loss on code best (4.23 to 3.85), tasks alone worst (4.69). One part in
fifty of code, as in the quickstart, costs the tasks nothing that the error bars show (0.449 ± 0.008, without it 0.462 ±
0.028). The paper publishes nothing to agree with; a model of this size has no general skill that a way of decoding
could be learned for.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from edlm_jax.studies.cells import study_config

QUICKSTART = runpy.run_path(str(Path(__file__).parents[1] / "quickstart.py"))["get_config"]


def get_config() -> ConfigDict:
    """The quickstart with a loss for each domain."""
    c = study_config(QUICKSTART())
    c.base.steps //= 8
    c.eval_losses = (dict(kind="tasks", split="test", seed=1, size=1000), dict(kind="stdlib", split="test"))
    c.base.checkpoint.keep_last = 1
    c.base.evaluation.thresholds = (1.0, 0.9)
    return c


def sweep(add) -> None:
    """The domains."""
    sources = QUICKSTART().data.sources
    for name, kinds in (("tasks", ("tasks",)), ("code", ("stdlib",)), ("both", ("tasks", "stdlib"))):
        add(f"converted on {name}", {"data.sources": tuple(source for source in sources if source["kind"] in kinds)})
