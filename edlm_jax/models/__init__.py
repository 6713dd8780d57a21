"""The Flax decoder: spec from a Hugging Face config.json, transformer, sharding, static KV cache."""

from edlm_jax.models.sharding import MESH_AXES, ShardingRules, named_sharding, param_shardings, partition_spec
from edlm_jax.models.spec import Conversion, ModelSpec
from edlm_jax.models.transformer import Transformer

__all__ = [
    "MESH_AXES",
    "Conversion",
    "ModelSpec",
    "ShardingRules",
    "Transformer",
    "named_sharding",
    "param_shardings",
    "partition_spec",
]
