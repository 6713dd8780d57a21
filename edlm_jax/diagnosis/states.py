"""Residual streams of a decoding, by state, layer and position: for probes and sparse autoencoders (2602.05859).

A state is a block before one of its forwards, behind what had been decoded by then. FILE is written as it comes, as
safetensors, with N states of C columns in L layers of width D:

    residual  float32[N, L + 1, C, D]    the stream before each layer and after the last, before the final norm
    tokens    int32[N, C]                the block's tokens, the mask where nothing is known yet
    answers   int32[N, C]                what they became; behind an answer's end the mask, whatever stood there
    row, first, forward   int32[N]       the question, the block's first new token, the forward of that row, from 1
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from edlm_jax.attention.pattern import PLAIN, PromptThenBlock
from edlm_jax.decoding import Decoder
from edlm_jax.decoding.prompts import pad_prompts, split_prompts
from edlm_jax.decoding.windows import window
from edlm_jax.diffusion.visited import visits
from edlm_jax.evaluation.batches import Decoded
from edlm_jax.models.cache import Rotary, prefill


@dataclass(frozen=True)
class PromptThenBlocks(PromptThenBlock):
    """A prompt, then blocks that see it, those before them and themselves."""

    block_length: int

    def allowed(self, q, k):
        """Of the response, no later block."""
        return super().allowed(q, k) & ((q < self.length) | (k // self.block_length <= q // self.block_length))


def write_states(
    path: Path, decoder: Decoder, prompts: Sequence[list[int]], decoded: Sequence[Decoded], batch_size: int
) -> int:
    """Writes the states that these prompts' decodings went through; returns their number."""
    spec, conversion = decoder.spec, decoder.spec.conversion
    C, mask_id = conversion.block_length, conversion.mask_token_id
    prompts, given = split_prompts(prompts, C if conversion.grid == "position" else 1)
    prompts_BP, pad_B = pad_prompts(prompts, C, spec.max_length)
    P = prompts_BP.shape[1]
    new = [rest + row.tokens for rest, row in zip(given, decoded, strict=True)]
    at = [[0] * len(rest) + row.accepted_at for rest, row in zip(given, decoded, strict=True)]
    states = [(row, *visit) for row, accepted_at in enumerate(at) for visit in visits(accepted_at, C)]
    N, T = len(states), P + -(-max(map(len, new)) // C) * C
    known = np.full((len(new), T), mask_id, np.int32)  # also in columns that no block before them sees
    for row, tokens in enumerate(new):
        known[row, :P], known[row, P : P + len(tokens)] = prompts_BP[row], tokens
    rows_N, first_N, forward_N = (np.array([state[i] for state in states], np.int32) for i in range(3))
    masked_NC = np.array([state[3] for state in states])
    answers_NC = np.array([known[row, P + first : P + first + C] for row, first, *_ in states])
    tokens_NC = np.where(masked_NC, mask_id, answers_NC)
    small = dict(tokens=tokens_NC, answers=answers_NC, row=rows_N, first=first_N, forward=forward_N)
    shape = (N, spec.num_layers + 1, C, spec.width)
    pattern = PromptThenBlocks(P, PLAIN[conversion.prefill](C), C)
    with open(path, "wb") as file:
        file.write(_header({name: ("I32", x.shape) for name, x in small.items()} | {"residual": ("F32", shape)}))
        for x in small.values():
            file.write(x.astype("<i4").tobytes())
        for begin in range(0, N, batch_size):
            some = np.minimum(np.arange(begin, begin + batch_size), N - 1)  # the last batch is as wide as the others
            tokens_BT, start_B = known[rows_N[some]], P + first_N[some]
            for row_T, start, block_C in zip(tokens_BT, start_B, tokens_NC[some], strict=True):
                row_T[start : start + C] = block_C
            x_BLCD = _streams(decoder.weights, tokens_BT, pad_B[rows_N[some]], start_B, pattern)
            file.write(np.asarray(x_BLCD[: N - begin]).astype("<f4").tobytes())
    return N


@partial(jax.jit, static_argnames="pattern")
def _streams(weights, tokens_BT, pad_B, start_B, pattern: PromptThenBlocks):
    """float32[B, L + 1, C, D] of the blocks that begin at these columns."""
    columns_T = jnp.arange(tokens_BT.shape[1])[None]
    rotary_BT = Rotary.of(weights.spec, tokens_BT.shape[1]).at(jnp.maximum(columns_T - pad_B[:, None], 0))
    segments_BT, streams = (columns_T >= pad_B[:, None]).astype(jnp.int32), []
    prefill(weights, tokens_BT, rotary_BT, pattern, segments_BT, keep=1, length=1, streams=streams)
    blocks = [window(x_BTD, start_B, pattern.block_length) for x_BTD in streams]
    return jnp.stack(blocks, axis=1).astype(jnp.float32)


def _header(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """Of a safetensors file with these tensors of 4 bytes a number, one behind the other."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + 4 * int(np.prod(shape))
        header[name] = dict(dtype=dtype, shape=shape, data_offsets=(begin, end))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
