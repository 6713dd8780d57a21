"""The teacher of a run: a converted model that is asked in every step what it says of the same noise, and never moves.

It has blocks of its own, smaller than those that are learned, and finds whole ones of them in each:

    blocks of 4, two of them masked in part       a b M M | e M M M
    the same columns for a teacher's blocks of 2  a b | M M | e M | M M     each with the clean text before it

Its weights lie on the mesh as the model's do, in the compute dtype; no checkpoint has them: a run that goes on reads
them again. Where adapters are trained and their base is the teacher, matrices that stay are there once.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
from flax import nnx
from jax.sharding import Mesh

from edlm_jax.diffusion import Batch, Corruption
from edlm_jax.diffusion.own_guesses import OwnGuesses
from edlm_jax.diffusion.taught import BEST, Taught
from edlm_jax.errors import InputError
from edlm_jax.models.lora import Lora, combine, partition
from edlm_jax.models.spec import ModelSpec
from edlm_jax.parallel.mesh import from_pieces, in_pieces
from edlm_jax.pretrained import load_pretrained, load_spec, load_tokenizer
from edlm_jax.pretrained.adapter import fingerprint
from edlm_jax.pretrained.load import open_checkpoint
from edlm_jax.training.checkpoint import abstract_model
from edlm_jax.training.config import refuse
from edlm_jax.training.objective import Objective

if TYPE_CHECKING:
    from edlm_jax.training.run import Run


@dataclass(frozen=True)
class Teacher:
    """What is compiled of it."""

    path: str
    spec: ModelSpec
    graphdef: nnx.GraphDef
    objective: Objective  # its own columns of the same rows
    abstract: dict  # ShapeDtypeStructs, with their shardings, of the parameters that are held beside the run's state
    shared: Lora | None  # adapters whose frozen base has the others

    def look(self, params: dict, state: dict, batch: Batch, corruption: Corruption, pieces: int = 1) -> Corruption:
        """The noise, with what the teacher says of it, a piece of the batch after the other; `state` is the run's."""
        model = nnx.merge(self.graphdef, combine(params, partition(state, self.shared)[1]))

        def say(batch: Batch, corruption: Corruption):
            streams = self.objective.streams(batch, corruption)
            x_BMD = streams.aligned(self.objective.hidden(model, batch, corruption))
            return model.best(x_BMD, self.objective.terms[0].wanted(streams), count=BEST)

        if pieces == 1:
            return corruption._replace(taught=say(batch, corruption))
        micro = in_pieces((batch, corruption), pieces)
        return corruption._replace(taught=from_pieces(jax.lax.map(lambda piece: say(*piece), micro)))

    def weights(self) -> dict:
        """Its parameters on the mesh."""
        if not (leaves := jax.tree.leaves(self.abstract)):
            return self.abstract  # the run's base has all of them
        first = leaves[0]
        model = load_pretrained(self.path, first.dtype.name, first.sharding.mesh)
        held, _ = partition(nnx.to_pure_dict(nnx.state(model, nnx.Param)), self.shared)
        return jax.device_put(held, jax.tree.map(lambda x: x.sharding, self.abstract))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of its weights, as adapters know those that they were trained on."""
        with open_checkpoint(self.path) as checkpoint:
            return fingerprint(checkpoint, self.spec)

    def check_tokens(self, spec: ModelSpec) -> None:
        """Refuses a model whose tokens are not the teacher's; reads both tokenizers."""
        ours, own = (load_tokenizer(one.source, one.vocab_size).get_vocab() for one in (spec, self.spec))
        if ours != own:
            raise InputError(f"config.objective.teacher: {self.path} has the tokenizer of another vocabulary")
        mask_ids = [one.conversion.mask_token_id for one in (spec, self.spec) if one.conversion]
        if len({*mask_ids}) > 1:
            raise InputError(
                f"config.objective.teacher: {self.path} knows token {mask_ids[1]} as mask, here it is {mask_ids[0]}; "
                "see config.init.mask_token_id"
            )


def find_teacher(run: "Run", spec: ModelSpec, mesh: Mesh) -> Teacher | None:
    """The teacher of a run of such a model, by its config.json; None: the run has none."""
    if not run.teacher:
        return None
    own = load_spec(run.teacher)
    refuse(_refusals(run, spec, own), f"config.objective.teacher: {run.teacher} ")
    layout, noisy = own.conversion.layout.as_decoded(), run.objective.layout
    layout = replace(layout, noisy_length=noisy.noisy_length, views=noisy.views)
    graphdef, params = abstract_model(own, run.start.dtype, mesh, run.start.tiles)
    shared = run.start.lora if run.teacher == run.start.path else None
    held = jax.tree.map(lambda x: x.update(dtype=run.start.dtype), partition(params, shared)[0])
    return Teacher(run.teacher, own, graphdef, Objective(layout, None, (Taught(),)), held, shared)


def _refusals(run: "Run", spec: ModelSpec, own: ModelSpec) -> Iterator[tuple[Any, str]]:
    ours, theirs, lengths = run.start.conversion, own.conversion, run.block_lengths
    yield own.vocab_size != spec.vocab_size, f"has a vocabulary of {own.vocab_size}, the model one of {spec.vocab_size}"
    yield theirs is None, "is an AR model: it knows nothing of noise; convert it first, in small blocks"
    assert ours and theirs  # a run with such a term has noise
    yield theirs.adapted == "noisy", "has adapters of noisy columns beside an AR model, which no teacher may have"
    yield theirs.pattern == "bidirectional", "was trained to look both ways, and has no blocks"
    for name in ("alignment", "grid", "noise"):
        here, there = getattr(ours, name), getattr(theirs, name)
        yield here != there, f"was converted with {name} {there!r}, here it is {here!r}"
    for length in (*lengths.choices, *(length for length, _ in lengths.stages)):
        parts = f"blocks of {theirs.block_length}, of which blocks of {length} are not whole ones"
        yield length % theirs.block_length, f"was trained in {parts}"
    guessing = isinstance(run.objective.noise, OwnGuesses)
    yield guessing, "is asked before the model guesses, and would see other noise: it goes with no noise of own guesses"
