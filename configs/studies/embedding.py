"""Embeddings: does a model that learned to look both ways describe a text better?

The paper's comparison (arXiv 2512.14067; mean of 15 sets of MTEB, hidden states averaged over tokens, no tuning):

    Qwen2.5-1.5B, AR 29.54, converted 37.25        Qwen3-4B, AR 30.79, converted 40.70

Here: the quickstart's model and data, an eighth of its steps. A docstring must find its function's body among 256
functions of held-out standard library files, by the cosine of mean-pooled hidden states; the mean reciprocal rank is
0.024 by chance. Each model is read under causal, block-causal and bidirectional attention. evaluation/mteb.py takes
larger models to MTEB.

    edlm study --config=configs/studies/embedding.py --workdir=runs/embedding

Hardware: two virtual CPU cores (Xeon, 2.5 GHz), a cell on one of them beside other work; 12 cells of 2 to 4 minutes.

Result: not shown at this scale. A model of 1.8 million parameters, trained on tasks for the most part, finds next to
nothing: mean reciprocal ranks are 0.032 to 0.038, where chance has 0.024. Read bidirectionally, the conversions have
0.036 ± 0.001 to 0.037 ± 0.002 and the AR model 0.032, which is in the paper's direction but within what the 256
functions leave open; read causally, the AR model has 0.036, the conversions 0.035 ± 0.001 to 0.038 ± 0.001. Which
pattern a conversion was trained with makes no difference to any of the three readings.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from edlm_jax.studies.cells import study_config

QUICKSTART = runpy.run_path(str(Path(__file__).parents[1] / "quickstart.py"))["get_config"]
PATTERNS = {
    "bidirectional": "bidirectional",
    "block-causal": "block_causal",
    "block-causal, clean context": "clean_context",
    "semi-block, clean context": "semi_block",
}


def get_config() -> ConfigDict:
    """The quickstart with retrieval."""
    c = study_config(QUICKSTART())
    c.base.steps //= 8
    c.retrieval = 256
    c.base.objective.noisy_length = 0  # one view of a row in every arm: patterns with one stream have no other
    c.base.checkpoint.keep_last = 1
    c.base.evaluation.thresholds = (1.0,)
    return c


def sweep(add) -> None:
    """The attention of the conversion."""
    for name, pattern in PATTERNS.items():
        add(name, {"objective.pattern": pattern})
