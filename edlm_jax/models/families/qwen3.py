"""Qwen3: norms of queries and keys."""

from edlm_jax.models.families.qwen2 import Qwen

QWEN3 = Qwen("qwen3", "Qwen3ForCausalLM", absent={"head_dim": 128}, bias_flags=("attention_bias",), qk_norm=True)
