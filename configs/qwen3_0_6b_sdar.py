"""Convert Qwen3-0.6B for servers that decode SDAR (LMDeploy, SGLang), on one GPU or TPU chip. Not yet run.

    edlm train --config=configs/qwen3_0_6b_sdar.py --workdir=runs/qwen3_sdar \\
        --config.data.sources="({'kind': 'jsonl', 'path': 'conversations/*.jsonl'},)"
    edlm export --workdir=runs/qwen3_sdar --out=served --format=sdar

Those servers count blocks from position 0, so that the last tokens of a prompt share their block with the first ones
of the answer: documents are packed that way here, without padding before prompts. Blocks of 4 and mask token 151669
are what they take a model to have unless told (arXiv 2510.06303 trains blocks of 4 and more); the mask's embedding
starts as the mean of the others, for Qwen3's own text never used that slot. All else is as in configs/qwen3_0_6b.py.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

QWEN3 = runpy.run_path(str(Path(__file__).with_name("qwen3_0_6b.py")))["get_config"]


def get_config() -> ConfigDict:
    """qwen3_0_6b in blocks of 4, counted from position 0."""
    c = QWEN3()
    c.init.mask_token_id = 151669  # <|MASK|> of SDAR's tokenizer; a free slot of Qwen3's
    c.init.mask_embedding = "mean"
    c.objective.grid = "position"
    c.objective.block_length = 4
    return c
