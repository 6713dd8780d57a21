"""What a run says before its first step: what is trained, what hides its tokens, on what, and how much at a time."""

from typing import TYPE_CHECKING

import jax

from edlm_jax.data.counts import totals
from edlm_jax.data.packing import CUT, SPLIT, TOO_LONG
from edlm_jax.data.pipeline import WITH_MASK_TOKEN
from edlm_jax.diffusion import Layout
from edlm_jax.models.lora import partition
from edlm_jax.models.spec import ModelSpec
from edlm_jax.pretrained.mask_token import why_mask_token
from edlm_jax.training.initial import Start

if TYPE_CHECKING:
    from edlm_jax.training.train import Batches

_LOST = {  # what a count means, and what to do
    TOO_LONG: "their prompts fill the row and nothing is learned from them; a longer data.length has room for them",
    CUT: "their answers are learned without an end, as far as they fit; a longer data.length has room for them",
    SPLIT: "their text is longer than a row: each piece is learned as a document of its own",
    WITH_MASK_TOKEN: "their text holds the mask token, which the model takes for hidden text; see init.mask_token_id",
}


def about_model(start: Start, spec: ModelSpec, tokenizer, params: dict) -> list[str]:
    """The model's size, its parts that are trained, and its mask token; `params` may be shapes."""
    trained, frozen = (sum(leaf.size for leaf in jax.tree.leaves(part)) for part in partition(params, start.lora))
    source, shape = start.path or "random weights", f"{spec.num_layers} layers of width {spec.width}"
    lines = [f"model: {source} ({spec.family}, {shape}), {trained:,} parameters trained, {frozen:,} frozen"]
    if spec.conversion is not None:
        mask_id = spec.conversion.mask_token_id
        why = why_mask_token(tokenizer, mask_id, spec, start.mask_token_id)
        lines.append(f"mask token: {tokenizer.convert_ids_to_tokens(mask_id)} ({mask_id}), {why}")
    return lines


def about_data(batches: "Batches", layout: Layout, steps: int) -> list[str]:
    """The sources and what is lost of them, as far as it is known, the held-out set, and the tokens of a step."""
    data, tallies = batches.data, batches.train.tallies
    lines = [f"data: {_name(spec)}: {tally}" for spec, tally in zip(data.sources, tallies, strict=True)]
    held_out = zip(data.eval_sources, batches.held_out_tallies, strict=True)
    lines += [f"held-out: {_name(spec)}: {tally}" for spec, tally in held_out]
    counts = totals([*tallies, *batches.held_out_tallies])
    lines += [f"{kind.replace('_', ' ')}: {meaning}" for kind, meaning in _LOST.items() if counts.get(kind)]
    rows, length, count = data.batch_size, data.length, len(batches.held_out)
    if count:
        most = ", the most that data.eval_batches allows" if count == data.eval_batches else ", all that fill rows"
        lines.append(f"held-out: {count} batches of {rows} rows{most}")
    blocks = f" in blocks of {layout.block_length}" if layout.noisy else ""
    return [*lines, f"step: {rows} rows of {length} = {rows * length:,} tokens{blocks}; {steps:,} steps"]


def _name(source) -> str:
    return " ".join(f"{name}={source[name]}" for name in source)
