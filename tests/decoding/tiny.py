"""A random model small enough to decode in a test, and prompts for it."""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from edlm_jax.models import Conversion, ModelSpec, Transformer
from edlm_jax.models.lora import ADAPTERS, Lora

VOCAB, MASK, EOS = 61, 60, 7
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "max_position_embeddings": 256,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
}


def make_model(alignment="same_position", prefill="block_causal", scale=40.0, seed=0, **config):
    """A random model whose tokens vary and whose confidences spread over (0, 1): a threshold decides something."""
    model = Transformer(ModelSpec.from_hf(CONFIG | config), rngs=nnx.Rngs(seed))
    for name in ("q_DNH", "k_DKH", "v_DKH", "o_NHD", "gate_DF", "up_DF", "down_FD"):
        param = getattr(model.layers, name)
        param[...] = param[...] * 10
    model.head_DV[...] = model.head_DV[...] * scale
    conversion = Conversion(mask_token_id=MASK, block_length=4, alignment=alignment, prefill=prefill)
    model.spec = dataclasses.replace(model.spec, conversion=conversion)
    return model


def with_gate(model, rng, rank=3):
    """The model with random adapters that act on noisy columns alone."""
    conversion = dataclasses.replace(model.spec.conversion, adapted="noisy")
    spec = dataclasses.replace(model.spec, conversion=conversion)
    gated = Transformer(spec, rngs=nnx.Rngs(0), lora=Lora(rank, 2.0 * rank, "noisy"))
    nnx.update(gated, nnx.state(model))
    for names in ADAPTERS.values():
        for name in names:
            param = getattr(gated.layers, name)
            param[...] = jnp.asarray(rng.normal(0, 0.3, param[...].shape), jnp.float32)
    return gated


def prompts(rng, lengths):
    return [rng.integers(0, MASK - 1, n).tolist() for n in lengths]
