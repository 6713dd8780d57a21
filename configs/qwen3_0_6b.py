"""Convert Qwen3-0.6B on one GPU or TPU chip, on text of your own. Not yet run: the numbers below are choices.

    edlm train --config=configs/qwen3_0_6b.py --workdir=runs/qwen3 \\
        --config.data.sources="({'kind': 'jsonl', 'path': 'corpus/*.jsonl'},)"

Blocks of 16, half-life 0.1 and 1e-5 -> 3e-6 are what arXiv 2512.14067 gives for its 1.5B model, which saw 300B tokens;
these 2000 steps are 131M. Batch, length, warm-up and weight decay are not published there; length, warm-up and weight
decay follow arXiv 2607.05722.
"""

from ml_collections import ConfigDict

from edlm_jax.training.config import default_config

QWEN3_0_6B = dict(
    architectures=["Qwen3ForCausalLM"],
    model_type="qwen3",
    vocab_size=151936,
    hidden_size=1024,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    intermediate_size=3072,
    max_position_embeddings=40960,
    rms_norm_eps=1e-6,
    rope_theta=1000000.0,
    hidden_act="silu",
    tie_word_embeddings=True,
)


def get_config(what: str = "") -> ConfigDict:
    """Blocks of 16, clean context, bfloat16 compute; float32 weights, moments and gradients take 10 GB."""
    if what not in ("", "planned"):
        raise ValueError(f"{what!r} is unknown; choose planned, or nothing")
    c = default_config()
    c.steps = 2000
    c.remat = "full"
    c.init.path = "Qwen/Qwen3-0.6B"
    if what == "planned":  # for edlm compile and edlm bench: no checkpoint is read, nor one of another shape refused
        c.init.hf_config = ConfigDict(QWEN3_0_6B)
    c.objective.block_length = 16
    c.data.batch_size = 16
    c.data.length = 4096
    c.optimizer.learning_rate = 1e-5
    c.optimizer.final_learning_rate = 3e-6
    c.optimizer.warmup_steps = 20
    c.optimizer.accumulation = 8
    c.checkpoint.every = 250
    return c
