"""`generate`: prompts in, tokens and honest counts out, whatever the mode."""

from collections.abc import Callable, Sequence

import numpy as np

from edlm_jax.decoding.acceptance import Rule
from edlm_jax.decoding.generation import Generation
from edlm_jax.decoding.modes import MODES, Run
from edlm_jax.decoding.options import check_prompts, read_options
from edlm_jax.decoding.prompts import row_seeds
from edlm_jax.errors import InputError
from edlm_jax.models import Transformer
from edlm_jax.models.cache import DecodingWeights


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
        draft_depth: int = 3,
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
          mode: "diffusion"; "ar", one token a forward on the same weights, causally; "self_speculation" and
            "quadratic_speculation", the tokens of greedy "ar" from drafted blocks that are verified causally, in two
            forwards a cycle or in one wide one; "mars", from left to right while confident, causally; "psd", diffusion
            with guesses `draft_depth` tokens deep that the next forward verifies; "dmax", soft tokens that are revised
            until they agree. Their files in edlm_jax/decoding/ say more.
          commit: "fused" (in the next block's first forward) or "separate".
          on_block: called with every row's settled tokens whenever a block has finished, for a person who watches.

        Raises:
          InputError: an unknown mode, a threshold outside [0, 1], a prompt that is empty, too long or holds the mask
            token (named by index), or diffusion from a model that was never converted.
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
            commit=commit,
            mask_id=mask_id,
            draft_depth=draft_depth,
        )
        MODES[mode].check(mode, options)
        check_prompts(prompts, options, MODES[mode].masks)
        if not prompts:
            return Generation([], [], [], [])
        run = MODES[mode].start(self.weights, prompts, options)
        return run.collect(run.whole()) if on_block is None else _watch(run, on_block)


def _watch(run: Run, on_block) -> Generation:
    """Decodes in pieces and shows what each has added."""
    state, seen = run.begin(), None
    while True:
        result = run.collect(state)
        if result.tokens != seen:
            on_block(result.tokens)
        if np.all(state.done_B):
            return result
        seen, state = result.tokens, run.advance(state)
