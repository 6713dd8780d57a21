"""Convert Qwen3-0.6B for servers that decode SDAR (LMDeploy, SGLang), on one GPU or TPU chip. Not yet run.

    edlm train --config=configs/qwen3_0_6b_sdar.py --workdir=runs/qwen3_sdar \\
        --config.data.sources="({'kind': 'jsonl', 'path': 'conversations/*.jsonl'},)"
    edlm export --workdir=runs/qwen3_sdar --out=served --format=sdar

Those servers count blocks from position 0, so that the last tokens of a prompt share their block with the first ones
of the answer: documents are packed that way here, without padding before prompts. Blocks of 4 and mask token 151669
are what they take a model to have unless told (arXiv 2510.06303 trains blocks of 4 and more); the mask's embedding
starts as the mean of the others, for Qwen3's own text never used that slot. All else is as in configs/qwen3_0_6b.py.
"""

from ml_collections import ConfigDict

from edlm_jax.training.config import default_config


def get_config() -> ConfigDict:
    """Blocks of 4 from position 0, clean context, bfloat16 compute; float32 weights, moments, gradients take 10 GB."""
    c = default_config()
    c.steps = 2000
    c.remat = "full"
    c.init.path = "Qwen/Qwen3-0.6B"
    c.init.mask_token_id = 151669  # <|MASK|> of SDAR's tokenizer; a free slot of Qwen3's
    c.init.mask_embedding = "mean"
    c.objective.grid = "position"
    c.objective.block_length = 4
    c.data.batch_size = 16
    c.data.length = 4096
    c.optimizer.learning_rate = 1e-5
    c.optimizer.final_learning_rate = 3e-6
    c.optimizer.warmup_steps = 20
    c.optimizer.accumulation = 8
    c.checkpoint.every = 250
    return c
