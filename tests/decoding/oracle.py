"""Block decoding in plain Python, one row, no cache, no padding, no compiled loop: what the decoder must equal."""

from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from flax import nnx

from edlm_jax.attention import Pattern

LENGTH = 32  # every forward is padded to this with later columns, which no pattern here shows: few programs to compile


@dataclass(frozen=True)
class PrefilledBlocks(Pattern):
    """A prompt that attends to itself by `prefill`, then blocks that see everything before them and themselves."""

    prompt: int
    block_length: int
    prefill: str

    def allowed(self, q, k):
        # Blocks are counted from the prompt's end; the prompt's own blocks have negative numbers.
        q_block, k_block = (q - self.prompt) // self.block_length, (k - self.prompt) // self.block_length
        prompt_masks = {"causal": k <= q, "bidirectional": k < self.prompt, "block_causal": k_block <= q_block}
        in_prompt = prompt_masks[self.prefill]
        return np.where(q < self.prompt, in_prompt & (k < self.prompt), k_block <= q_block)


def decode(
    model,
    prompt,
    *,
    max_new_tokens,
    block_length,
    threshold,
    at_least,
    eos_id,
    mask_id,
    prefill,
    shifted=False,
    given=(),
):
    """(new tokens, denoising forwards); `given` are known tokens that begin the first block."""
    C = block_length
    tokens, forwards = list(prompt), 0
    while True:
        start = len(tokens)
        tokens += ([*given] + [mask_id] * C)[:C] if start == len(prompt) else [mask_id] * C
        while mask_id in tokens[start:]:
            pattern = PrefilledBlocks(len(prompt), C, prefill)
            logits_TV = forward(model, tokens, pattern)
            logits_TV[:, mask_id] = -np.inf
            logits_CV = logits_TV[start - shifted : start - shifted + C]
            forwards += 1
            probability_CV = np.exp(logits_CV - np.array(jax.nn.logsumexp(logits_CV, axis=-1))[:, None])
            best = [(probability_CV[i].max(), -i) for i in range(C) if tokens[start + i] == mask_id]
            for rank, (confidence, negative) in enumerate(sorted(best, reverse=True)):
                if rank < at_least or (confidence >= threshold and threshold < 1):
                    tokens[start - negative] = int(probability_CV[-negative].argmax())
            new = tokens[len(prompt) + len(given) :]
            settled = new[: new.index(mask_id)] if mask_id in new else new
            settled = settled[:max_new_tokens]
            if eos_id in settled:
                return settled[: settled.index(eos_id) + 1], forwards
            if len(settled) == max_new_tokens:
                return settled, forwards


def forward(model, tokens, pattern):
    """float64 logits of a row of tokens, padded to `LENGTH`."""
    graphdef, state = nnx.split(model)
    padded = np.array([tokens + [0] * (LENGTH - len(tokens))])
    return np.array(_logits(graphdef, state, padded, pattern.dense(LENGTH, LENGTH))[0], np.float64)


@dataclass(frozen=True, eq=False)
class Drawn(Pattern):
    """A mask that is a value of the program: one program serves all patterns."""

    mask_TT: jax.Array

    def allowed(self, q, k):
        return self.mask_TT[q, k]


@partial(jax.jit, static_argnames="graphdef")
def _logits(graphdef, state, tokens_BT, mask_TT):
    return nnx.merge(graphdef, state)(tokens_BT, pattern=Drawn(mask_TT))
