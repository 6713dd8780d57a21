"""`generate`: prompts in, tokens and honest counts out, whatever the mode."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from edlm_jax.decoding.acceptance import Rule
from edlm_jax.decoding.generation import Generation
from edlm_jax.decoding.modes import MODES, Run
from edlm_jax.decoding.options import read_options, refuse_prompts
from edlm_jax.decoding.prompts import row_seeds
from edlm_jax.decoding.stopping import Reader, check_stop
from edlm_jax.errors import InputError
from edlm_jax.models import Transformer
from edlm_jax.models.cache import DecodingWeights
from edlm_jax.pretrained.text import Read, Text


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
        eos_id: int | Sequence[int] | None = None,
        mode: str = "diffusion",
        prefill: str | None = None,
        grid: str | None = None,
        confidence: str | None = None,
        commit: str | None = None,
        mask_id: int | None = None,
        draft_depth: int = 3,
        sub_block_length: int | None = None,
        dual_cache: bool = False,
        stop: str | Sequence[str] = (),
        detokenize: Read | Text | None = None,
        on_block: Callable[[list[list[int]]], None] | None = None,
    ) -> Generation:
        """Decodes a batch of prompts of any lengths.

        Args:
          max_new_tokens: the most new tokens of a row; a row ends earlier at an `eos_id` with no mask before it.
          block_length, prefill, grid, mask_id: default to what the checkpoint was converted with. `prefill` is how the
            prompt attends to itself: "block_causal", "bidirectional" or "causal". `grid` is where blocks are counted
            from: "response", the prompt's end, or "position", position 0, so that the last tokens of a prompt may share
            their block with the first ones of the answer.
          threshold: accept every masked token with at least this confidence, and always the best one; 1 is one token a
            forward.
          rule: another acceptance rule than `Threshold(threshold)`, as a value or as text: "factor:1", "fixed:2".
          temperature, top_k, top_p: 0 is greedy, else Gumbel-max sampling among the best k tokens (0: all) and the
            smallest set that holds the probability p.
          confidence: what rules compare: "raw", the model's own probabilities, or "drawn", those after temperature,
            top_k and top_p. Default: as the checkpoint's own code does.
          seed: one for all rows, from which each row gets its own, or one a row: a row alone then equals the row in any
            batch.
          mode: "diffusion"; "ar", one token a forward on the same weights, causally; "self_speculation" and
            "quadratic_speculation", the tokens of greedy "ar" from drafted blocks that are verified causally, in two
            forwards a cycle or in one wide one; "mars", from left to right while confident, causally; "psd", diffusion
            with guesses `draft_depth` tokens deep that the next forward verifies; "dmax", soft tokens that are revised
            until they agree. Their files in edlm_jax/decoding/ say more.
          commit: "fused" (in the next block's first forward), "separate", or "first_token": separate, and it gives the
            next block's first token, however sure. Default: as the checkpoint's own code does.
          sub_block_length: diffusion finishes sub-blocks of so many tokens from left to right inside a block (Fast-dLLM
            v2: 8 in blocks of 32); `dual_cache` then forwards the active one alone where it can, an approximation.
          stop, detokenize: a row also ends before the first of these strings in its text, which `detokenize` makes of
            its tokens (a tokenizer's decode, or a `Text`, which also finds strings with special tokens that it does not
            show); a token that holds the string's first character is left out. With `detokenize` the result has texts
            as they read behind their prompts, cut to the character.
          on_block: called with every row's settled tokens whenever a block has finished, or every few tokens in the
            modes without blocks, for a person who watches; tokens that may begin a stop string wait.

        Raises:
          InputError: an unknown mode, a threshold outside [0, 1], a prompt that is empty, too long or holds the mask
            token (named by index), a stop string without `detokenize`, what a mode cannot do, or any mode but "ar" from
            a model that was never converted.
        """
        if mode not in MODES:
            raise InputError(f"mode {mode!r} is unknown; choose one of {', '.join(MODES)}")
        options = read_options(
            self.spec,
            max_new_tokens=max_new_tokens,
            block_length=block_length,
            threshold=threshold,
            rule=rule,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seeds_B=row_seeds(seed, len(prompts)),
            eos_id=eos_id,
            prefill=prefill,
            grid=grid,
            confidence=confidence,
            commit=commit,
            mask_id=mask_id,
            draft_depth=draft_depth,
            sub_block_length=sub_block_length,
            dual_cache=dual_cache,
        )
        MODES[mode].check(mode, options)
        mask_id = options.mask_id if MODES[mode].masks else None
        for reason in refuse_prompts(self.spec, prompts, max_new_tokens, mask_id).values():
            raise InputError(reason)
        stop = check_stop(stop, detokenize)
        if not prompts:
            return Generation([], [], [], [])
        run = MODES[mode].start(self.weights, prompts, options)
        reader = Reader(stop, detokenize, prompts) if detokenize else None
        if on_block or stop:
            return _in_pieces(run, reader, on_block)
        return reader.read(run.whole()) if reader else run.whole()


def _in_pieces(run: Run, reader: Reader | None, on_block) -> Generation:
    """Reads and shows what each piece has added; a row that was stopped costs no further forward."""
    state, seen = run.begin(), None
    while True:
        result, done_B = run.collect(state), np.asarray(state.done_B)
        if reader:
            result = reader.read(result)
            done_B = done_B | reader.stopped_B
        settled = reader.settled(result, done_B) if reader else result.tokens
        if on_block and settled != seen:
            on_block(settled)
        if done_B.all():
            return result
        seen, state = settled, run.advance(replace(state, done_B=done_B))
