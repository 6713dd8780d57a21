"""`generate`: prompts in, tokens and honest counts out, whatever the mode."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from edlm_jax.attention import Bidirectional, BlockCausal, Causal
from edlm_jax.decoding.autoregressive import decode_autoregressive
from edlm_jax.decoding.blocks import BlockSettings, decode_blocks
from edlm_jax.errors import InputError
from edlm_jax.models import Transformer
from edlm_jax.models.cache import unstack_layers

MODES = ("diffusion", "ar")
_SHORTEST = 64  # columns of the smallest prompt bucket: buckets double from here, so mixed lengths compile few programs


@dataclass(frozen=True)
class Generation:
    """New tokens of each row, up to and including its EOS, and the forwards they took.

    Forwards are counted per row and summed over rows: a row that is done no longer counts. In AR mode the prefill is
    counted, since it yields the first token; in diffusion mode it yields none and is not.
    """

    tokens: list[list[int]]
    accepted_at: list[list[int]]  # for each token, the row's denoising forward (from 1) that accepted it
    row_denoise_forwards: list[int]
    row_commit_forwards: list[int]

    @property
    def denoise_forwards(self) -> int:
        """Forwards that produced tokens."""
        return sum(self.row_denoise_forwards)

    @property
    def commit_forwards(self) -> int:
        """Forwards that only wrote a finished block into the cache (0 when commits ride in denoising forwards)."""
        return sum(self.row_commit_forwards)

    @property
    def tokens_per_forward(self) -> float:
        """Generated tokens per denoising forward (TPF)."""
        return sum(map(len, self.tokens)) / max(self.denoise_forwards, 1)


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    block_length: int | None = None,
    threshold: float = 0.9,
    steps_per_block: int | None = None,
    temperature: float = 0.0,
    seed: int | Sequence[int] = 0,
    eos_id: int | None = None,
    mode: str = "diffusion",
    prefill: str | None = None,
    commit: str = "fused",
    mask_id: int | None = None,
) -> Generation:
    """Decodes a batch of prompts of any lengths.

    Args:
      max_new_tokens: the most new tokens of a row; a row ends earlier at an `eos_id` with no mask before it.
      block_length, prefill, mask_id: default to what the checkpoint was converted with. `prefill` is how the prompt
      attends to
        itself: "block_causal" (the grid counted from the prompt's end, as trained), "bidirectional" or "causal".
      threshold: accept every masked token with at least this confidence, and always the best one; 1 is one token a
      forward. steps_per_block: instead of a threshold, a fixed number of steps for each block.
      temperature: 0 is greedy, else Gumbel-max sampling.
      seed: one for all rows (each row then folds in its index), or one a row: a row alone then equals the row in any
      batch. mode: "diffusion", or "ar": one token a forward on the same weights, causally.
      commit: "fused" (in the next block's first forward) or "separate".

    Raises:
      InputError: an unknown mode, a threshold outside [0, 1], a prompt that is empty, too long or holds the mask token
      (named
        by index), or diffusion from a model that was never converted.
    """
    mask_id = model.spec.conversion.mask_token_id if mask_id is None and model.spec.conversion else mask_id
    _check(model, prompts, max_new_tokens, threshold, temperature, mode, mask_id, commit)
    if not prompts:
        return Generation([], [], [], [])
    keys_B = _row_keys(seed, len(prompts))
    graphdef, state = nnx.split(model)
    layers = _unstack(graphdef, state)
    if mode == "ar":
        prompts_BP, pad_B = pad_prompts(prompts, 1, model.spec.max_length)
        tokens_BX, counts_B = decode_autoregressive(
            graphdef, state, layers, prompts_BP, pad_B, keys_B, max_new_tokens, temperature,
            room=max_new_tokens, eos_id=eos_id, banned_id=mask_id, sample=temperature > 0,
        )  # fmt: skip
        counts = np.asarray(counts_B).tolist()
        rows = np.asarray(tokens_BX)[:, prompts_BP.shape[1] :]
        tokens = [row[:count].tolist() for row, count in zip(rows, counts, strict=True)]
        return Generation(tokens, [list(range(1, n + 1)) for n in counts], counts, [0] * len(counts))
    settings = _block_settings(model, max_new_tokens, block_length, eos_id, prefill, mask_id, temperature > 0, commit)
    prompts_BP, pad_B = pad_prompts(prompts, settings.block_length, model.spec.max_length)
    at_least = -(-settings.block_length // steps_per_block) if steps_per_block else 1
    threshold = 1.0 if steps_per_block else threshold
    final = decode_blocks(
        graphdef, state, layers, prompts_BP, pad_B, keys_B, max_new_tokens, threshold, at_least, temperature, settings
    )
    return _collect(final, prompts_BP.shape[1], max_new_tokens, eos_id)


def pad_prompts(prompts: Sequence[Sequence[int]], block_length: int, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """(prompts_BP, pad_B): left-padded to end at column P, a multiple of the block length, from few sizes."""
    longest = max(map(len, prompts))
    P = _SHORTEST
    while P < longest:
        P *= 2
    P = -(-(min(P, max_length) if longest <= max_length else longest) // block_length) * block_length
    pad_B = np.array([P - len(prompt) for prompt in prompts], np.int32)
    prompts_BP = np.zeros((len(prompts), P), np.int32)
    for row, prompt, pad in zip(prompts_BP, prompts, pad_B, strict=True):
        row[pad:] = prompt
    return prompts_BP, pad_B


@partial(jax.jit, static_argnames="graphdef")
def _unstack(graphdef, state):
    return unstack_layers(nnx.merge(graphdef, state))


def _row_keys(seed, count):
    if isinstance(seed, int):
        return jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(jnp.arange(count))
    if len(seed) != count:
        raise InputError(f"seed: {len(seed)} seeds for {count} prompts; give one, or one a prompt")
    return jax.vmap(jax.random.key)(jnp.asarray(seed))


def _block_settings(model, max_new_tokens, block_length, eos_id, prefill, mask_id, sample, commit) -> BlockSettings:
    conversion = model.spec.conversion
    if block_length is None and conversion:
        block_length = conversion.block_length
    if block_length is None or block_length < 1:
        raise InputError(f"block_length must be a positive number of tokens, not {block_length}")
    prefill = prefill or (conversion.prefill if conversion else "block_causal")
    patterns = {"block_causal": BlockCausal(block_length), "bidirectional": Bidirectional(), "causal": Causal()}
    if prefill not in patterns:
        raise InputError(f"prefill {prefill!r} is unknown; choose one of {', '.join(patterns)}")
    return BlockSettings(
        block_length=block_length,
        num_blocks=-(-max_new_tokens // block_length),
        mask_id=mask_id,
        eos_id=eos_id,
        shifted=conversion is not None and conversion.alignment == "shifted",
        sample=sample,
        fused_commit=commit == "fused",
        prefill=patterns[prefill],
    )


def _check(model, prompts, max_new_tokens, threshold, temperature, mode, mask_id, commit):
    if mode not in MODES:
        raise InputError(f"mode {mode!r} is unknown; choose one of {', '.join(MODES)}")
    if commit not in ("fused", "separate"):
        raise InputError(f"commit {commit!r} is unknown; choose 'fused' or 'separate'")
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold must lie in [0, 1], not {threshold}")
    if temperature < 0:
        raise InputError(f"temperature must not be negative, not {temperature}")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be positive, not {max_new_tokens}")
    if mode == "diffusion" and mask_id is None:
        raise InputError("this model was never converted and has no mask token; convert it or use mode='ar'")
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(f"prompt {index} is empty; give at least one token")
        if len(prompt) + max_new_tokens > model.spec.max_length:
            raise InputError(
                f"prompt {index}: {len(prompt)} tokens and {max_new_tokens} new ones exceed the model's cache of "
                f"{model.spec.max_length}; shorten it or ask for fewer"
            )
        if mode == "diffusion" and mask_id in prompt:
            raise InputError(f"prompt {index} holds the mask token {mask_id}; remove it")
        if not all(0 <= token < model.spec.vocab_size for token in prompt):
            raise InputError(f"prompt {index} holds a token outside the vocabulary of {model.spec.vocab_size}")


def _collect(final, P, max_new_tokens, eos_id) -> Generation:
    rows = np.asarray(final.tokens_BX)[:, P : P + max_new_tokens]
    accepted = np.asarray(final.accepted_at_BX)[:, P : P + max_new_tokens]
    tokens, accepted_at = [], []
    for row, at in zip(rows.tolist(), accepted.tolist(), strict=True):
        length = row.index(eos_id) + 1 if eos_id in row else len(row)
        tokens.append(row[:length])
        accepted_at.append(at[:length])
    return Generation(tokens, accepted_at, np.asarray(final.denoise_B).tolist(), np.asarray(final.commit_B).tolist())
