"""Converted on one domain, measured on the other: is it the data that is learned, or a way of decoding?

The paper (arXiv 2512.14067) converts on a mixture of text, mathematics and code, and publishes no comparison of this
kind.

Here: the quickstart's model, which was trained on generated tasks and the standard library's sources, converted on the
one, the other, or both as in the quickstart, each for an eighth of its steps. Exact match is on the tasks; losses are
on held-out tasks and held-out code. Code has no prompts, so every token is learned from and rows have no second view.

    edlm study --config=configs/studies/generalisation.py --workdir=runs/generalisation

Hardware and result: not yet run; 9 cells of an estimated minute on the quickstart's two cores.
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
