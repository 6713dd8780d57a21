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

Hardware and result: not yet run; 15 cells of an estimated 2 minutes on the quickstart's two cores.
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
