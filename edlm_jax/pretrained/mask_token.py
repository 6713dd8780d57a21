"""The mask token: an existing slot of the vocabulary that text never uses, and how its embedding starts.

Embeddings are not resized, so that a converted checkpoint stays a checkpoint of its family.
"""

import json
import re

import jax
import jax.numpy as jnp

from edlm_jax.errors import InputError
from edlm_jax.models.spec import ModelSpec
from edlm_jax.models.transformer import Transformer
from edlm_jax.pretrained.encode import HFTokenizer
from edlm_jax.pretrained.text import Text

# Names of special tokens that fit, the best first, and why; among equals the lowest id.
_SLOTS = {
    r"<\|mask\|>|<mask>|\[MASK\]|<\|mdm_mask\|>": "made for it",
    r"<\|fim_pad\|>": "pads fill-in-the-middle, in no text",  # Qwen2.5, Qwen3: 151662, as Efficient-DLM has it
    r"<\|reserved_special_token_\d+\|>": "reserved, in no text",  # Llama 3: 128002
    r".*(reserved|unused).*|<SPECIAL_\d+>|\[control_\d+\]|<fim_pad>": "unused, in no text",  # Gemma, Mistral, others
    r"<empty_output>": "an empty notebook cell, in no prose or chat",  # SmolLM2
}
STARTS = ("keep", "mean", "noise")


def choose_mask_token(tokenizer: HFTokenizer, spec: ModelSpec, override: int = -1) -> int:
    """The id to mask with: `override` unless -1, else the unused special token of the tokenizer's family."""
    ends = Text.of(spec, tokenizer).ends  # also those that the model's files list, or its chat template writes
    taken = {tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id, *ends} - {None}
    if override != -1:
        if not 0 <= override < spec.vocab_size:
            raise InputError(f"init.mask_token_id {override} is outside the vocabulary of {spec.vocab_size} tokens")
        if override in taken:
            token = tokenizer.convert_ids_to_tokens(override)
            raise InputError(f"init.mask_token_id {override} is {token!r}, which text uses; choose an unused token")
        return override
    special = {token: token_id for token, token_id in tokenizer.get_added_vocab().items() if token_id not in taken}
    for slot in _SLOTS:
        if found := [token_id for token, token_id in special.items() if re.fullmatch(slot, token)]:
            return min(found)
    raise InputError("the tokenizer has no special token that is known to be unused: set init.mask_token_id to one")


def why_mask_token(tokenizer: HFTokenizer, mask_id: int, spec: ModelSpec, override: int = -1) -> str:
    """Why `choose_mask_token` took this one for the model that `spec` was read from."""
    if override != -1:
        return "set by init.mask_token_id"
    if ModelSpec.from_hf(json.loads(spec.hf_json)).conversion is not None:
        return "the one this model was converted with"
    token = str(tokenizer.convert_ids_to_tokens(mask_id))
    return next(why for slot, why in _SLOTS.items() if re.fullmatch(slot, token))


def start_mask_embedding(model: Transformer, mask_id: int, how: str, key: jax.Array) -> float:
    """Sets the mask token's embedding in place; returns its norm over the median norm of all embeddings.

    An AR model may have let an unused slot decay to almost nothing. The first norm layer divides by it, so its gradient
    explodes at conversion. How the row starts:

    keep   as it is.
    mean   in the direction of the mean of all other rows, with their median norm: a token without a meaning of its own.
    noise  drawn from the normal distribution of the other rows, coordinate by coordinate.

    LLaDA2.0 cured the explosion by noise on this embedding early in training; noise at the start alone is our choice.
    The head's column stays as it is, unless head and embedding are tied.
    """
    if how not in STARTS:
        raise InputError(f"init.mask_embedding {how!r} is not one of {', '.join(STARTS)}")
    row_D, ratio = _start(model.embedding_VD[...], mask_id, how, key)
    if how != "keep":
        model.embedding_VD[...] = model.embedding_VD[...].at[mask_id].set(row_D)
    return float(ratio)


def _start(embedding_VD: jax.Array, mask_id: int, how: str, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows_VD = embedding_VD.astype(jnp.float32)
    others_V1 = (jnp.arange(rows_VD.shape[0]) != mask_id)[:, None]
    median = jnp.median(jnp.linalg.norm(rows_VD, axis=1))
    mean_D = jnp.mean(rows_VD, axis=0, where=others_V1)
    row_D = rows_VD[mask_id]
    if how == "mean":
        row_D = mean_D * median / jnp.maximum(jnp.linalg.norm(mean_D), 1e-30)
    if how == "noise":
        spread_D = jnp.std(rows_VD, axis=0, where=others_V1)
        row_D = mean_D + spread_D * jax.random.normal(key, mean_D.shape)
    return row_D.astype(embedding_VD.dtype), jnp.linalg.norm(row_D) / median
