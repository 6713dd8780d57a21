"""`generate`: prompts in, tokens and honest counts out, whatever the mode."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from edlm_jax.attention import Bidirectional, BlockCausal, Causal
from edlm_jax.decoding.acceptance import Rule, Sampling, Threshold, parse_rule
from edlm_jax.decoding.autoregressive import decode_autoregressive
from edlm_jax.decoding.blocks import BlockSettings, BlockState, Request, begin_blocks, decode_blocks, next_blocks
from edlm_jax.decoding.speculation import decode_speculative
from edlm_jax.errors import InputError
from edlm_jax.models import Transformer
from edlm_jax.models.cache import DecodingWeights

MODES = ("diffusion", "ar", "self_speculation")
_SHORTEST = 8  # columns of the smallest prompt bucket: buckets double from here, so mixed lengths compile few programs


@dataclass(frozen=True)
class Generation:
    """New tokens of each row, up to and including its EOS, and the forwards they took.

    Forwards are counted per row and summed over rows: a row that is done no longer counts. The prefill is each row's
    first: it yields the first token in AR mode and is the first denoising step in diffusion mode.
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


def generate(model: Transformer, prompts: Sequence[Sequence[int]], **settings) -> Generation:
    """`Decoder(model)(prompts, **settings)`, whose docstring lists them. Keep a `Decoder` to decode many times."""
    return Decoder(model)(prompts, **settings)


class Decoder:
    """A model made ready for decoding: its weights laid out once. It does not follow later changes of them."""

    def __init__(self, model: Transformer):
        self.spec = model.spec
        self.weights = DecodingWeights.of(model)

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        block_length: int | None = None,
        threshold: float = 0.9,
        rule: Rule | str | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
        eos_id: int | None = None,
        mode: str = "diffusion",
        prefill: str | None = None,
        commit: str = "fused",
        mask_id: int | None = None,
        on_block: Callable[[list[list[int]]], None] | None = None,
    ) -> Generation:
        """Decodes a batch of prompts of any lengths.

        Args:
          max_new_tokens: the most new tokens of a row; a row ends earlier at an `eos_id` with no mask before it.
          block_length, prefill, mask_id: default to what the checkpoint was converted with. `prefill` is how the prompt
            attends to itself: "block_causal" (the grid counted from the prompt's end, as trained), "bidirectional" or
            "causal".
          threshold: accept every masked token with at least this confidence, and always the best one; 1 is one token a
            forward.
          rule: another acceptance rule than `Threshold(threshold)`, as a value or as text: "factor:1", "fixed:2".
          temperature, top_k, top_p: 0 is greedy, else Gumbel-max sampling among the best k tokens (0: all) and the
            smallest set that holds the probability p.
          seed: one for all rows, from which each row gets its own, or one a row: a row alone then equals the row in any
            batch.
          mode: "diffusion"; "ar", one token a forward on the same weights, causally; or "self_speculation", the tokens
            of greedy "ar" from drafted blocks that are verified causally.
          commit: "fused" (in the next block's first forward) or "separate".
          on_block: called with every row's settled tokens whenever a block has finished, for a person who watches.

        Raises:
          InputError: an unknown mode, a threshold outside [0, 1], a prompt that is empty, too long or holds the mask
            token (named by index), or diffusion from a model that was never converted.
        """
        if mask_id is None and self.spec.conversion:
            mask_id = self.spec.conversion.mask_token_id
        if isinstance(rule, str):
            rule = parse_rule(rule)
        rule = rule or Threshold(threshold)
        rule.check()
        _check(self.spec, prompts, max_new_tokens, temperature, top_k, top_p, mode, mask_id, commit)
        if not prompts:
            return Generation([], [], [], [])
        seeds_B = _row_seeds(seed, len(prompts))
        sampling = Sampling(False, top_k, top_p) if temperature > 0 else Sampling()
        if mode == "ar":
            shape = dict(room=max_new_tokens, eos_id=eos_id, banned_id=mask_id, sampling=sampling)
            return self._autoregressive(prompts, seeds_B, max_new_tokens, temperature, shape, on_block)
        if mode == "self_speculation":
            return self._speculative(prompts, max_new_tokens, block_length, eos_id, mask_id, on_block)
        settings = _block_settings(self.spec, max_new_tokens, block_length, eos_id, prefill, mask_id, sampling, commit)
        rule = jax.tree.map(np.float32, rule)  # of one type always, or an int would compile again
        prompts, given = _split_prompts(prompts, settings.block_length if self.spec.on_position_grid else 1)
        prompts_BP, pad_B = pad_prompts(prompts, settings.block_length, self.spec.max_length)
        first_BC = np.array([row + [mask_id] * (settings.block_length - len(row)) for row in given], np.int32)
        given_B = np.array([len(row) for row in given], np.int32)
        request = Request(prompts_BP, pad_B, first_BC, given_B, seeds_B, max_new_tokens, rule, float(temperature))
        return self._blocks(request, settings, on_block)

    def _blocks(self, request: Request, settings: BlockSettings, on_block) -> Generation:
        if on_block is None:
            return _collect(decode_blocks(self.weights, request, settings), request, settings)
        state, seen = begin_blocks(self.weights, request, settings), None
        while True:
            result = _collect(state, request, settings)
            if result.tokens != seen:
                on_block(result.tokens)
            if np.all(state.done_B):
                return result
            seen, state = result.tokens, next_blocks(self.weights, request, settings, state)

    def _autoregressive(self, prompts, seeds_B, limit, temperature, shape, on_block) -> Generation:
        prompts_BP, pad_B = pad_prompts(prompts, 1, self.spec.max_length)
        arrays = (self.weights, prompts_BP, pad_B, seeds_B)
        tokens_BX, counts_B = jax.device_get(decode_autoregressive(*arrays, limit, float(temperature), **shape))
        rows, counts = tokens_BX[:, prompts_BP.shape[1] :].tolist(), counts_B.tolist()
        tokens = [row[:count] for row, count in zip(rows, counts, strict=True)]
        if on_block is not None:
            on_block(tokens)
        return Generation(tokens, [list(range(1, count + 1)) for count in counts], counts, [0] * len(counts))


    def _speculative(self, prompts, limit, block_length, eos_id, mask_id, on_block) -> Generation:
        C = block_length or self.spec.conversion.block_length
        prompts_BP, pad_B = pad_prompts(prompts, 1, self.spec.max_length)
        shape = dict(block_length=C, room=limit, eos_id=eos_id, mask_id=mask_id)
        shifted = self.spec.conversion.alignment == "shifted"
        final = decode_speculative(self.weights, prompts_BP, pad_B, limit, shifted=shifted, **shape)
        tokens_BX, at_BX, counts_B, forwards_B = jax.device_get(final)
        P, counts = prompts_BP.shape[1], counts_B.tolist()
        tokens = [row[P : P + count].tolist() for row, count in zip(tokens_BX, counts, strict=True)]
        accepted_at = [row[P : P + count].tolist() for row, count in zip(at_BX, counts, strict=True)]
        if on_block is not None:
            on_block(tokens)
        return Generation(tokens, accepted_at, forwards_B.tolist(), [0] * len(counts))


def _collect(state: BlockState, request: Request, settings: BlockSettings) -> Generation:
    """What a state holds: of a row that is not done, its finished blocks."""
    final = (state.tokens_BX, state.accepted_at_BX, state.start_B, state.done_B, state.denoise_B, state.commit_B)
    tokens_BX, accepted_at_BX, start_B, done_B, denoise_B, commit_B = jax.device_get(final)
    P, tokens, accepted_at = request.prompts_BP.shape[1], [], []
    rows = zip(tokens_BX, accepted_at_BX, start_B, done_B, P + request.given_B, strict=True)
    for row, at, start, done, begin in rows:
        new = row[begin : begin + request.limit if done else max(start, begin)].tolist()
        length = new.index(settings.eos_id) + 1 if settings.eos_id in new else len(new)
        tokens.append(new[:length])
        accepted_at.append(at[begin : begin + length].tolist())
    return Generation(tokens, accepted_at, denoise_B.tolist(), commit_B.tolist())


def _split_prompts(prompts, block_length):
    """(whole blocks of each prompt, the rest of it)."""
    cuts = [len(prompt) // block_length * block_length for prompt in prompts]
    pairs = [(list(prompt[:cut]), list(prompt[cut:])) for prompt, cut in zip(prompts, cuts, strict=True)]
    return [whole for whole, _ in pairs], [rest for _, rest in pairs]


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


def _row_seeds(seed, count):
    """uint32[count]: one a row, so that a row draws the same noise in any batch."""
    if isinstance(seed, int | np.integer):
        return np.random.SeedSequence(seed).generate_state(count)
    if len(seed) != count:
        raise InputError(f"seed: {len(seed)} seeds for {count} prompts; give one, or one a prompt")
    return np.asarray(seed, np.uint32)


def _block_settings(spec, max_new_tokens, block_length, eos_id, prefill, mask_id, sampling, commit) -> BlockSettings:
    conversion = spec.conversion
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
        # Counted from position 0, up to block_length - 1 tokens of the prompt lie in the first block.
        num_blocks=-(-(max_new_tokens + (block_length - 1) * spec.on_position_grid) // block_length),
        mask_id=mask_id,
        eos_id=eos_id,
        shifted=conversion is not None and conversion.alignment == "shifted",
        sampling=sampling,
        fused_commit=commit == "fused",
        prefill=patterns[prefill],
    )


def _check(spec, prompts, max_new_tokens, temperature, top_k, top_p, mode, mask_id, commit):
    if mode not in MODES:
        raise InputError(f"mode {mode!r} is unknown; choose one of {', '.join(MODES)}")
    if commit not in ("fused", "separate"):
        raise InputError(f"commit {commit!r} is unknown; choose 'fused' or 'separate'")
    if temperature < 0:
        raise InputError(f"temperature must not be negative, not {temperature}")
    if top_k < 0 or not 0 < top_p <= 1:
        raise InputError(f"top_k must not be negative and top_p must lie in (0, 1], not {top_k} and {top_p}")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be positive, not {max_new_tokens}")
    if mode != "ar" and (mask_id is None or mode == "self_speculation" and spec.conversion is None):
        raise InputError("this model was never converted and has no mask token; convert it or use mode='ar'")
    if mode == "self_speculation" and temperature > 0:
        raise InputError("self_speculation is greedy: it verifies drafts token by token; use temperature 0")
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(f"prompt {index} is empty; give at least one token")
        if len(prompt) + max_new_tokens > spec.max_length:
            raise InputError(
                f"prompt {index}: {len(prompt)} tokens and {max_new_tokens} new ones exceed the model's cache of "
                f"{spec.max_length}; shorten it or ask for fewer"
            )
        if mode != "ar" and mask_id in prompt:
            raise InputError(f"prompt {index} holds the mask token {mask_id}; remove it")
        if not all(0 <= token < spec.vocab_size for token in prompt):
            raise InputError(f"prompt {index} holds a token outside the vocabulary of {spec.vocab_size}")
