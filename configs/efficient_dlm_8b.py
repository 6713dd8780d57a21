"""Efficient-DLM 8B (arXiv 2512.14067) on TPU: Qwen3-8B to block diffusion. Compiled, not yet run.

    edlm train --config=configs/efficient_dlm_8b.py --workdir=runs/efficient_dlm_8b \\
        --config.data.sources="({'kind': 'array_record', 'path': 'corpus/*.array_record'},)"
    edlm compile --config=configs/efficient_dlm_8b.py:torus --topology=v5p:4x4x4

From the paper: clean context, no shift, blocks of 64 (decoded in blocks of 32), half-life 0.1, AdamW, 1e-5 -> 3e-6 by
cosine, 500B tokens; 70.65 is its mean over twelve tasks at 3.27 tokens per forward. What it does not publish, and from
where that comes here, is in configs/efficient_dlm_1p5b.py; the batch is 1024 x 4096 rather than 512, so that two slices
of 512 chips have a row each. `edlm compile` says which chips it fits on.
"""

from ml_collections import ConfigDict

from edlm_jax.training.config import default_config

QWEN3_8B = dict(
    architectures=["Qwen3ForCausalLM"],
    model_type="qwen3",
    vocab_size=151936,
    hidden_size=4096,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    intermediate_size=12288,
    max_position_embeddings=40960,
    rms_norm_eps=1e-6,
    rope_theta=1000000.0,
    hidden_act="silu",
    tie_word_embeddings=False,
)


def get_config(what: str = "") -> ConfigDict:
    """Blocks of 64, 500B tokens; on any number of devices that divides 1024.

    `torus` is for slices of three axes (v5p, TPU7x): there links carry least where 16 devices at a time share the
    weights out (docs/compile.md).
    """
    if what not in ("", "torus"):
        raise ValueError(f"{what!r} is unknown; choose torus, or nothing")
    c = default_config()
    c.init.path = "Qwen/Qwen3-8B"
    c.init.hf_config = ConfigDict(QWEN3_8B)
    c.init.mask_token_id = 151662  # <|fim_pad|>
    c.objective.block_length = 64
    c.data.batch_size = 1024
    c.data.length = 4096
    c.steps = 119_000  # 500B tokens
    c.remat = "auto"  # again is computed what does not fit
    c.optimizer.warmup_steps = 1190
    c.optimizer.accumulation = 0  # the fewest micro-batches that fit
    c.mesh.data = 0
    if what == "torus":
        c.mesh.update(data=-1, fsdp=16)
    c.checkpoint.every = 1000
    return c
