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

Hardware: two virtual CPU cores (Xeon, 2.5 GHz); 18 cells of 60 to 110 seconds, three seeds an arm.

Result: agrees on the order of the patterns. With shifted targets, at one token a forward: bidirectional 0.761 ± 0.010,
block-causal 0.796 ± 0.002, with clean context 0.848 ± 0.006; the gaps are 3.5 and 8.9 standard errors. With targets at
the same position the first two are alike (0.238 ± 0.006, 0.242 ± 0.029) and clean context is ahead (0.314 ± 0.017, 2.1
standard errors). That targets at the same position are better does not appear after so few steps (it does after 3200,
the alignment study): the AR model predicts the next token, and what has to be learned anew is far from learned. Not yet
run at a larger scale.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict, config_dict

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
    c.base.objective.half_life = config_dict.placeholder(float)  # None
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
