"""Llama 3, SmolLM2 and all else that calls itself Llama."""

from edlm_jax.models.families.family import Family

LLAMA = Family(
    "llama",
    "LlamaForCausalLM",
    absent={"num_key_value_heads": None},  # as many as heads
    bias_flags=("attention_bias", "mlp_bias"),
)
