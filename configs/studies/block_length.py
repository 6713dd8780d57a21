"""Blocks of one length in training, of another in decoding.

The paper's grid (arXiv 2512.14067; Qwen2.5-1.5B, mean accuracy, training down, decoding across):

            4      8      16     32     64     128
    4       25.1   24.0   23.2   18.4   13.6   9.7
    8       36.3   35.4   36.0   34.8   32.7   32.1
    16      37.5   38.2   38.4   37.6   37.7   37.9
    32      36.9   38.2   37.7   35.3   35.0   34.6
    64      35.2   35.8   35.9   35.1   34.9   34.7
    128     33.4   33.8   33.7   33.1   33.2   32.0

Here: the quickstart's model and data, an eighth of its steps. Its answers have about 12 tokens, so that blocks of 32
hold any answer whole; one token a forward (threshold 1) and threshold 0.9.

    edlm study --config=configs/studies/block_length.py --workdir=runs/block_length

Hardware: two virtual CPU cores (Xeon, 2.5 GHz), a cell on one of them beside other work; 15 cells of 3 to 11 minutes.

Result: agrees that blocks should not be longer in decoding than in training, and more strongly: trained at 4, the
accuracy falls from 0.622 ± 0.035 to 0.307 ± 0.027 at 8 and 0.052 ± 0.006 at 16, trained at 8 from 0.448 ± 0.008 to
0.189 ± 0.020 at 16, while the paper sees that at 4 alone. Shorter blocks than training's cost little or nothing, as in
the paper (trained at 16: 0.197 to 0.214, at 16 itself 0.160). It does not agree on which length to train at: the
shorter the better here, 0.757 ± 0.015 at 2, 0.059 ± 0.012 at 32, where the paper has 16 before 4. The larger a block,
the further its task is from next-token prediction, and this is an eighth of the quickstart's steps; no longer run was
made.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from edlm_jax.studies.cells import study_config

QUICKSTART = runpy.run_path(str(Path(__file__).parents[1] / "quickstart.py"))["get_config"]
LENGTHS = (2, 4, 8, 16, 32)


def get_config() -> ConfigDict:
    """The quickstart, decoded in blocks of every length."""
    c = study_config(QUICKSTART())
    c.base.steps //= 8
    c.x = "block_length"
    c.eval_block_lengths = LENGTHS
    c.base.checkpoint.keep_last = 1
    c.base.evaluation.thresholds = (1.0, 0.9)
    return c


def sweep(add) -> None:
    """The block length of training."""
    for length in LENGTHS:
        add(f"trained at {length}", {"objective.block_length": length})
