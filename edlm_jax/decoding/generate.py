"""`generate`: prompts in, tokens and honest counts out, whatever the mode. A thin front of the mode values."""

from collections.abc import Callable, Sequence
from typing import Any

from edlm_jax.decoding.acceptance import Rule
from edlm_jax.decoding.decoder import Decoder
from edlm_jax.decoding.generation import Generation
from edlm_jax.decoding.modes import make_mode, options_of, parse_mode
from edlm_jax.decoding.modes.mode import Mode
from edlm_jax.decoding.sampling import Sampling
from edlm_jax.errors import InputError
from edlm_jax.models import Transformer
from edlm_jax.pretrained.text import Read, Text


def generate(
    model: Transformer | Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    mode: str | Mode = "diffusion",
    block_length: int | None = None,
    threshold: float = 0.9,
    rule: Rule | str | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    confidence: str | None = None,
    seed: int | Sequence[int] = 0,
    eos_id: int | Sequence[int] | None = None,
    prefill: str | None = None,
    grid: str | None = None,
    commit: str | None = None,
    mask_id: int | None = None,
    draft_depth: int = 3,
    sub_block_length: int | None = None,
    dual_cache: bool = False,
    stop: str | Sequence[str] = (),
    detokenize: Read | Text | None = None,
    on_block: Callable[[list[list[int]]], None] | None = None,
) -> Generation:
    """Decodes a batch of prompts of any lengths. A `Decoder` in place of the model decodes many times.

    Args:
      max_new_tokens: the most new tokens of a row.
      mode: a name, or a mode with its own options, as value or as text ("psd:depth=3"); the options below are then left
        out. "diffusion"; "ar", one token a forward on the same weights, causally; the text of "ar" from drafts that are
        verified: "self_speculation", "quadratic_speculation", "prompt_lookup"; "mars", from left to right while
        confident; "psd", with guesses `draft_depth` tokens deep; "multi_block"; "edit"; "dmax". Their files in
        edlm_jax/decoding/modes/ say how each decodes.
      block_length, prefill, grid, mask_id: default to what the checkpoint was converted with. `prefill` is how the
        prompt attends to itself: "block_causal", "bidirectional" or "causal". `grid` is where blocks are counted from:
        "response", the prompt's end, or "position", position 0, so that the last tokens of a prompt may share their
        block with the first ones of the answer.
      threshold: accept every masked token with at least this confidence, and always the best one; 1 is one token a
        forward.
      rule: another acceptance rule than `Threshold(threshold)`, as a value or as text: "factor:1", "fixed:2".
      temperature, top_k, top_p: 0 is greedy, else Gumbel-max sampling among the best k tokens (0: all) and the smallest
        set that holds the probability p.
      confidence: what rules compare: "raw", the model's own probabilities, or "drawn", those after temperature, top_k
        and top_p. Default: as the checkpoint's own code does.
      seed: one for all rows, from which each row gets its own, or one a row: a row alone then equals the row in any
        batch.
      eos_id: one id or several; a row ends earlier at any of them that has no mask before it. `Text.of` knows a model's
        (edlm_jax/pretrained/text.py).
      commit: "fused" (in the next block's first forward), "separate", or "first_token": separate, and it gives the next
        block's first token, however sure. Default: as the checkpoint's own code does.
      sub_block_length: diffusion finishes sub-blocks of so many tokens from left to right inside a block (Fast-dLLM v2:
        8 in blocks of 32); `dual_cache` then forwards the active one alone where it can, an approximation.
      stop, detokenize, on_block: see `Decoder`.

    Raises:
      InputError: an unknown mode, a threshold outside [0, 1], a prompt that is empty, too long or holds the mask token
        (named by index), a stop string without `detokenize`, what a mode cannot do, or any mode but "ar" from a model
        that was never converted.
    """
    options = dict(block_length=block_length, threshold=threshold, rule=rule, prefill=prefill, grid=grid, commit=commit)
    options |= dict(mask_id=mask_id, depth=draft_depth, sub_block_length=sub_block_length, dual_cache=dual_cache)
    decoder = model if isinstance(model, Decoder) else Decoder.of(model)
    mode = mode if isinstance(mode, Mode) else _named(mode, options)
    sampling = Sampling(temperature, top_k, top_p, confidence)
    how: dict[str, Any] = dict(seed=seed, ends=eos_id, stop=stop, detokenize=detokenize, on_block=on_block)
    return decoder(prompts, mode, limit=max_new_tokens, sampling=sampling, **how)


# Given to a mode that has no such option, these are mistakes; the others are defaults that it does not need.
_REFUSED = ("rule", "commit", "sub_block_length", "dual_cache")


def _named(name: str, options: dict) -> Mode:
    if ":" in name:
        return parse_mode(name)
    own = options_of(name)
    for option in _REFUSED:
        if option not in own and options[option]:
            raise InputError(f"{name} has no {option}; leave it out")
    return make_mode(name, **{option: value for option, value in options.items() if option in own})
