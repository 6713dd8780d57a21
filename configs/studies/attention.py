"""Who may look at whom while a block is denoised: pattern, clean context, alignment.

The paper's comparison of attention schemes (arXiv 2512.14067; Qwen2.5-1.5B, 50B tokens, blocks of 16, mean of six
code and mathematics benchmarks), with its uniform noise:

    AR, unconverted                                 41.79
    bidirectional, shifted / same position          18.10 / 19.29
    block-causal without clean context, shifted     28.23 (27.73 with twice the tokens)
    block-causal with clean context, shifted        37.69
    block-causal with clean context, same position  38.41

Here: the quickstart's model and data, an eighth of its steps, one noisy view of a row. All arms decode in blocks of 8
with a cache; after bidirectional training a prompt attends to itself in both directions (`objective.prefill`). The AR
row is the model that all arms start from.

    edlm study --config=configs/studies/attention.py --workdir=runs/attention

Hardware and result: not yet run; 18 cells of about 10 minutes on the quickstart's two cores.
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
}
ALIGNMENTS = {"shifted": "shifted", "same position": "same_position"}


def get_config() -> ConfigDict:
    """The quickstart, shorter, with one uniform noise level a row."""
    c = study_config(QUICKSTART())
    c.base.steps //= 8
    with c.base.ignore_type():
        c.base.objective.half_life = None
    c.base.objective.noisy_length = 0  # one view of a row in every arm: patterns with one stream have no other
    c.base.checkpoint.keep_last = 1
    c.base.evaluation.thresholds = (1.0, 0.9)
    return c


def sweep(add) -> None:
    """Every pattern with every alignment."""
    for name, pattern in PATTERNS.items():
        for alignment_name, alignment in ALIGNMENTS.items():
            changes = {"objective.pattern": pattern, "objective.alignment": alignment}
            add(f"{name}, {alignment_name}", changes)
