"""A drafter for SmolLM2-135M-Instruct, learned from the model's own greedy answers on two CPU cores.

    make smollm2        # ports the model, lets it answer, trains this, measures

`edlm lossless` fills in `init.path`, `data.sources` and `steps`, and this recipe serves any AR model. The model is
frozen, adapters of rank 32 act on masks alone. Behind every token of an answer stands a mask (blocks of one), which
sees what is before it and learns the token after the next one: the first draft of a forward that also verifies. On CPU
columns are dear, so that a single draft costs least; one step in four has blocks of two, for a second one.

Measured: docs/performance.md.
"""

from ml_collections import ConfigDict

from edlm_jax.training.config import default_config


def get_config() -> ConfigDict:
    """The recipe."""
    c = default_config()
    c.dtype = "float32"  # bfloat16 is slower on most CPUs
    c.init.path = "runs/smollm2/ar"
    c.lora.update(rank=32, alpha=64.0, columns="noisy")
    c.objective.update(pattern="causal_block", alignment="shifted", noise="full_masks", block_length=2)
    c.objective.update(diffusion_weight=0.0, drafts_weight=1.0, random_block_lengths=(1, 1, 1, 2), noisy_length=320)
    c.data.update(batch_size=1, length=512, sources=(dict(kind="jsonl", path="runs/smollm2/answers.jsonl"),))
    c.optimizer.update(learning_rate=1e-3, final_learning_rate=1e-4, schedule="wsd", warmup_steps=20, decay_steps=100)
    c.optimizer.update(beta2=0.99, weight_decay=0.0)
    c.checkpoint.every = 50
    return c
