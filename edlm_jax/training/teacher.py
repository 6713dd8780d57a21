"""The teacher of a run: a converted model that is asked in every step what it says of the same noise, and never moves.

It has blocks of its own, smaller than those that are learned, and finds whole ones of them in each:

    blocks of 4, two of them masked in part       a b M M | e M M M
    the same columns for a teacher's blocks of 2  a b | M M | e M | M M     each with the clean text before it

Its weights lie on the mesh as the model's do, in the compute dtype; no checkpoint has them: a run that goes on reads
them again. Where adapters are trained and their base is the teacher, matrices that stay are there once.
"""

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import jax
from flax import nnx
from jax.sharding import Mesh

from edlm_jax.diffusion import Batch, Corruption
from edlm_jax.diffusion.own_guesses import OwnGuesses
from edlm_jax.diffusion.taught import BEST, Taught
from edlm_jax.errors import InputError
from edlm_jax.models.lora import Lora, combine, partition
from edlm_jax.models.spec import Conversion, ModelSpec
from edlm_jax.models.transformer import Transformer
from edlm_jax.parallel.mesh import from_pieces, in_pieces
from edlm_jax.parallel.sharding import param_shardings
from edlm_jax.pretrained import load_pretrained, load_spec, load_tokenizer
from edlm_jax.pretrained.adapter import fingerprint
from edlm_jax.pretrained.load import open_checkpoint
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
        frozen = partition(state, self.shared)[1] if self.shared else {}
        model = nnx.merge(self.graphdef, combine(params, frozen))

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
    conversion = own.conversion
    if reason := _why_not(run, spec, own, conversion):
        raise InputError(f"config.objective.teacher: {run.teacher} {reason}")
    assert conversion
    layout, noisy = conversion.layout.as_decoded(), run.objective.layout
    layout = replace(layout, noisy_length=noisy.noisy_length, views=noisy.views)
    dtype = run.start.dtype
    build = functools.partial(Transformer, own, dtype=dtype, param_dtype=dtype, tiles=run.start.tiles)
    graphdef, params = nnx.split(nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0))))
    shared = run.start.lora if run.teacher == run.start.path else None
    held = partition(nnx.to_pure_dict(params), shared)[0]
    shapes = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
    abstract = jax.tree.map(shapes, held, param_shardings(mesh, held))
    return Teacher(run.teacher, own, graphdef, Objective(layout, None, (Taught(),)), abstract, shared)


def _why_not(run: "Run", spec: ModelSpec, own: ModelSpec, conversion: Conversion | None) -> str | None:
    if own.vocab_size != spec.vocab_size:
        return f"has a vocabulary of {own.vocab_size}, the model one of {spec.vocab_size}"
    if conversion is None:
        return "is an AR model: it knows nothing of noise; convert it first, in small blocks"
    if conversion.adapted == "noisy":
        return "has adapters of noisy columns beside an AR model, which no teacher may have"
    if conversion.pattern == "bidirectional":
        return "was trained to look both ways, and has no blocks"
    ours, lengths = run.start.conversion, run.block_lengths
    assert ours  # a run with such a term has noise
    for name in ("alignment", "grid", "noise"):
        if getattr(ours, name) != getattr(conversion, name):
            return f"was converted with {name} {getattr(conversion, name)!r}, here it is {getattr(ours, name)!r}"
    for length in (*lengths.choices, *(length for length, _ in lengths.stages)):
        if length % conversion.block_length:
            return f"was trained in blocks of {conversion.block_length}, of which blocks of {length} are not whole ones"
    if isinstance(run.objective.noise, OwnGuesses):
        return "is asked before the model guesses, and would see other noise: it goes with no noise of own guesses"
    return None
