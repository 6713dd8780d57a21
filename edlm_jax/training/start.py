"""What a run says before its first step: what is trained, what hides its tokens, on what, and how much at a time."""

import jax
from ml_collections import ConfigDict

from edlm_jax.models.lora import partition
from edlm_jax.models.spec import ModelSpec
from edlm_jax.pretrained import why_mask_token
from edlm_jax.training.config import grid


def first_lines(c: ConfigDict, spec: ModelSpec, tokenizer, params: dict, documents: list[int]) -> list[str]:
    """A line each; `params` may be shapes, `documents` is how many each source has."""
    return [_model(c, spec, params), *_mask_token(c, spec, tokenizer), *_data(c, documents), _step(c)]


def _model(c: ConfigDict, spec: ModelSpec, params: dict) -> str:
    trained, frozen = (sum(leaf.size for leaf in jax.tree.leaves(part)) for part in partition(params))
    shape = f"{spec.num_layers} layers of width {spec.width}"
    source = c.init.path or "random weights"
    return f"model: {source} ({spec.family}, {shape}), {trained:,} parameters trained, {frozen:,} frozen"


def _mask_token(c: ConfigDict, spec: ModelSpec, tokenizer) -> list[str]:
    if spec.conversion is None:
        return []
    mask_id = spec.conversion.mask_token_id
    text, why = tokenizer.convert_ids_to_tokens(mask_id), why_mask_token(tokenizer, mask_id, spec, c.init.mask_token_id)
    return [f"mask token: {text} ({mask_id}), {why}"]


def _data(c: ConfigDict, documents: list[int]) -> list[str]:
    return [
        f"data: {' '.join(f'{name}={spec[name]}' for name in spec)}: {count:,} documents"
        for spec, count in zip(c.data.sources, documents, strict=True)
    ]


def _step(c: ConfigDict) -> str:
    o, rows, length = c.objective, c.data.batch_size, c.data.length
    blocks = f", blocks of {grid(c)}" if o.pattern != "causal" else ""
    return f"step: {rows} rows of {length} = {rows * length:,} tokens{blocks}, {c.steps:,} steps"
