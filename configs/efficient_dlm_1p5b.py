"""Efficient-DLM 1.5B (arXiv 2512.14067) on TPU: Qwen2.5-1.5B to block diffusion. Compiled, not yet run.

    edlm train --config=configs/efficient_dlm_1p5b.py --workdir=runs/efficient_dlm_1p5b \\
        --config.data.sources="({'kind': 'array_record', 'path': 'corpus/*.array_record'},)"
    edlm compile --config=configs/efficient_dlm_1p5b.py --topology=v5e:4x4

From the paper: clean context, no shift, blocks of 16, half-life 0.1, AdamW, 1e-5 -> 3e-6 by cosine, 300B tokens (its
ablations saw 50B). Its data is Nemotron-Nano-2's mix, MegaMath, SwallowCode and SwallowMath in ratios not published.
Not published either: batch, length, warm-up, weight decay; batch 512 x 4096, warm-up 1 %, weight decay 0.1, beta2 0.95
and clipping at 1 are the successor's (arXiv 2607.05722). `edlm compile` says which chips it fits on.
"""

from ml_collections import ConfigDict

from edlm_jax.training.config import default_config

QWEN2_5_1_5B = dict(
    architectures=["Qwen2ForCausalLM"],
    model_type="qwen2",
    vocab_size=151936,
    hidden_size=1536,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    intermediate_size=8960,
    max_position_embeddings=131072,
    rms_norm_eps=1e-6,
    rope_theta=1000000.0,
    hidden_act="silu",
    tie_word_embeddings=True,
)


def get_config() -> ConfigDict:
    """Blocks of 16, 300B tokens; on any number of devices that divides 512."""
    c = default_config()
    c.init.path = "Qwen/Qwen2.5-1.5B"
    c.init.hf_config = ConfigDict(QWEN2_5_1_5B)
    c.init.mask_token_id = 151662  # <|fim_pad|>
    c.objective.block_length = 16
    c.data.batch_size = 512
    c.data.length = 4096
    c.steps = 143_000  # 300B tokens
    c.remat = "auto"  # again is computed what does not fit
    c.optimizer.warmup_steps = 1430
    c.optimizer.accumulation = 0  # the fewest micro-batches that fit
    c.mesh.data = 0
    c.checkpoint.every = 1000
    return c
