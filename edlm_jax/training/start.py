"""A run's data, and what it says before its first step: what is trained, what hides tokens, and how much at a time."""

import jax
from jax.sharding import Mesh

from edlm_jax.data.counts import totals
from edlm_jax.data.packing import CUT, SPLIT, TOO_LONG
from edlm_jax.data.pipeline import WITH_MASK_TOKEN, Data, EvalBatches, make_dataset
from edlm_jax.diffusion import Layout
from edlm_jax.models.lora import partition
from edlm_jax.models.spec import ModelSpec
from edlm_jax.parallel.mesh import check_batch, local_rows, to_global
from edlm_jax.pretrained.mask_token import why_mask_token
from edlm_jax.training.initial import Start

_LOST = {  # what a count means, and what to do
    TOO_LONG: "their prompts fill the row and nothing is learned from them; a longer data.length has room for them",
    CUT: "their answers are learned without an end, as far as they fit; a longer data.length has room for them",
    SPLIT: "their text is longer than a row: each piece is learned as a document of its own",
    WITH_MASK_TOKEN: "their text holds the mask token, which the model takes for hidden text; see init.mask_token_id",
}


class Batches:
    """This process's rows of the batches: training, an iterator whose state is saved, and held-out, read once."""

    def __init__(self, data: Data, spec: ModelSpec, tokenizer, mesh: Mesh):
        self.data, self.mesh, self.rows = data, mesh, local_rows(mesh, data.batch_size)
        which = dict(rows=self.rows, mask_id=spec.conversion.mask_token_id if spec.conversion else None)
        self.train = make_dataset(data, tokenizer, **which)
        held_out = EvalBatches(data, tokenizer, **which) if data.eval_sources else None
        self.held_out = list(held_out or ())
        self.held_out_tallies = held_out.tallies if held_out else []

    def to_global(self, batch: dict) -> dict[str, jax.Array]:
        """A batch on the mesh, checked."""
        check_batch(batch, grid=self.data.block_length)
        return to_global(batch, self.mesh, self.rows, self.data.batch_size)


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


def about_data(batches: Batches, layout: Layout, steps: int) -> list[str]:
    """The sources and what is lost of them, as far as it is known, the held-out set, and the tokens of a step."""
    data, tallies = batches.data, batches.train.tallies
    line = lambda what, spec, tally: f"{what}: {' '.join(f'{k}={v}' for k, v in spec.items())}: {tally}"  # noqa: E731
    lines = [line("data", *found) for found in zip(data.sources, tallies, strict=True)]
    lines += [line("held-out", *found) for found in zip(data.eval_sources, batches.held_out_tallies, strict=True)]
    counts = totals([*tallies, *batches.held_out_tallies])
    lines += [f"{kind.replace('_', ' ')}: {meaning}" for kind, meaning in _LOST.items() if counts.get(kind)]
    rows, length, count = data.batch_size, data.length, len(batches.held_out)
    if count:
        most = ", the most that data.eval_batches allows" if count == data.eval_batches else ", all that fill rows"
        lines.append(f"held-out: {count} batches of {rows} rows{most}")
    blocks = f" in blocks of {layout.block_length}" if layout.noisy else ""
    return [*lines, f"step: {rows} rows of {length} = {rows * length:,} tokens{blocks}; {steps:,} steps"]
