"""The decoder: every family of models (families/) from one `ModelSpec`.

Shapes: B batch, T query length, S key length, D width, N query heads, K key heads, H head size, F ffn width, V
vocabulary. The layers are stacked: each parameter under `layers` has a leading layer axis and the forward pass scans
over it, so that a 36-layer model compiles as fast as a 5-layer one. Parameter names end in their shape;
parallel/sharding.py reads it.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from edlm_jax.attention import Causal, CleanContext, InPieces, Pattern, Sight, Tiles, plan_attention
from edlm_jax.errors import InputError
from edlm_jax.models.column_losses import Certainty, CrossEntropy, Divergence, Shares
from edlm_jax.models.head import best_tokens, column_loss
from edlm_jax.models.layer import layer_forward, layer_shapes, norm, scaled_embedding, two_streams
from edlm_jax.models.lora import Lora, initial_adapters, scaled, without_adapters
from edlm_jax.models.product import look_up, project
from edlm_jax.models.spec import ModelSpec
from edlm_jax.parallel.sharding import constrain

REMAT_POLICIES = {  # each keeps less of the forward pass than the one before
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "save_attention": jax.checkpoint_policies.save_only_these_names("attention"),
    "full": jax.checkpoint_policies.nothing_saveable,
}

# So few layers are written out one by one: stacking what they keep for the backward pass costs a tenth of a CPU's step.
_UNROLLED = 4


def compiled_once(*static: str) -> Callable[[Callable], Callable]:
    """A decorator of a model's method: one program for all calls of equal shapes, `static` arguments and model class.

    A forward pass makes the functions that it scans over anew, so that jax by itself would compile at every call.
    Inside `jax.jit` it is as if this were not there.
    """

    def decorate(method):
        @partial(jax.jit, static_argnames=("graphdef", *static))
        def run(graphdef, state, *args, **kwargs):
            return method(nnx.merge(graphdef, state), *args, **kwargs)

        return wraps(method)(lambda self, *args, **kwargs: run(*nnx.split(self), *args, **kwargs))

    return decorate


class Layers(nnx.Module):
    """All layers' parameters, stacked."""

    def __init__(self, spec: ModelSpec, rngs: nnx.Rngs, param_dtype: str, lora: Lora | None = None):
        self.lora = lora
        for name, shape in layer_shapes(spec).items():
            setattr(self, name, _init(spec, name, (spec.num_layers, *shape), rngs, param_dtype))
        if lora:
            for name, value in initial_adapters(rngs.params(), layer_shapes(spec), spec.num_layers, lora).items():
                setattr(self, name, nnx.Param(value))

    @property
    def gated(self) -> bool:
        """Are there adapters, and on noisy columns alone?"""
        return self.lora is not None and self.lora.gated

    def stacked(self) -> dict[str, jax.Array]:
        """name -> array with a leading layer axis, as it is stored: rounding is the products' affair."""
        params = {name: value for name, value in vars(self).items() if isinstance(value, nnx.Param)}
        return scaled({name: param[...] for name, param in params.items()}, self.lora)


class Transformer(nnx.Module):
    """A decoder-only language model.

    `dtype` is what it computes in, `param_dtype` what it stores, `tiles` what attention computes at once. It has
    adapters (`lora`) while it is trained; what decodes or is exported has them merged, but for those of noisy columns
    alone: with them it is an AR model that can draft.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        rngs: nnx.Rngs,
        dtype: str = "float32",
        param_dtype: str = "float32",
        tiles: Tiles | None = None,
        lora: Lora | None = None,
    ):
        self.spec = spec
        self.dtype = dtype
        self.tiles = tiles
        self.embedding_VD = _init(spec, "embedding_VD", (spec.vocab_size, spec.width), rngs, param_dtype)
        self.layers = Layers(spec, rngs, param_dtype, lora)
        self.final_norm_D = _init(spec, "final_norm_D", (spec.width,), rngs, param_dtype)
        if not spec.tied:
            self.head_DV = _init(spec, "head_DV", (spec.width, spec.vocab_size), rngs, param_dtype)

    @compiled_once("pattern")
    def __call__(
        self,
        tokens_BT: Int[Array, "B T"],
        *,
        pattern: Pattern = Causal(),  # noqa: B008 (frozen)
        positions_BT: Int[Array, "B T"] | None = None,
        segment_ids_BT: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """float32 logits; under `CleanContext` the row is `[noisy | clean]` and has 2L columns."""
        rows = dict(positions_BT=positions_BT, segment_ids_BT=segment_ids_BT)
        return self.logits(self.hidden(tokens_BT, pattern=pattern, **rows))

    @compiled_once("pattern", "remat", "columns")
    def hidden(
        self,
        tokens_BT: Int[Array, "B T"],
        *,
        pattern: Pattern,
        positions_BT: Int[Array, "B T"] | None = None,
        segment_ids_BT: Int[Array, "B T"] | None = None,
        copies_BM: Int[Array, "B M"] | None = None,
        seen_TT: Bool[Array, "T T"] | None = None,
        remat: str = "none",
        columns: int | None = None,
    ) -> Float[Array, "B T D"]:
        """What the head reads, after the final norm. Positions default to one document a row from column 0 on.

        `copies_BM`: see `Sight`; positions, segments and tokens of the noisy columns are then those of their copies.
        `seen_TT`: there, too; of one stream, on a mesh that leaves rows whole.
        Of the last layer only the first `columns` are computed where that is given: under `CleanContext` the clean
        stream has no loss of its own, and there it needs to give keys and values alone. On a mesh that splits rows
        over `context` the columns lie `InPieces` from the first layer to the last.
        """
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(pattern.positions(tokens_BT.shape[1]), tokens_BT.shape)
        row = InPieces.on_mesh(pattern, tokens_BT.shape[1])
        arranged: Iterator[Any] = map(row.enter, (tokens_BT, positions_BT, segment_ids_BT, copies_BM))
        tokens_BT, positions_BT, segment_ids_BT, copies_BM = arranged
        spec, (B, S) = self.spec, tokens_BT.shape
        heads, layers, rotary = (spec.num_heads, spec.num_kv_heads), self.layers.stacked(), spec.rotary(positions_BT)
        unroll, x_BTD = spec.num_layers <= _UNROLLED, self.embed(tokens_BT)
        in_scan = not unroll and len(spec.kinds) == 1  # layers of several kinds may be left over after it
        checkpointed = partial(rematerialise, remat=remat, in_scan=in_scan)
        final_norm = partial(norm, spec, scale=self.final_norm_D[...])

        @cache
        def planned(window, T):
            documents = row.read(segment_ids_BT, T), segment_ids_BT
            sight = Sight(row.for_queries(T).within(window), B, T, S, *documents, row.read(copies_BM, T), seen_TT)
            return plan_attention(sight, heads, self.tiles)

        if self.layers.gated and isinstance(pattern, CleanContext):
            L, documents_BL = pattern.length, None if segment_ids_BT is None else row.split(segment_ids_BT)[1]

            @cache
            def beside(window):
                alone = Sight(row.beside_noise.within(window), B, L, L, documents_BL, documents_BL)
                return planned(window, pattern.noisy_columns), plan_attention(alone, heads, self.tiles)

            streamed = partial(two_streams, spec, row, checkpointed=checkpointed)
            both = [streamed(tables, beside(kind.window)) for kind, tables in zip(spec.kinds, rotary, strict=True)]
            streams = _scan_in_turn(both, row.split(x_BTD), layers, unroll)
            x_BTD = row.read(row.join(*map(final_norm, streams)), columns)
            return constrain(row.leave(x_BTD), "BL_")

        def body(x_BTD, layer, tables, plan, columns=None):
            x_BTD = layer_forward(spec, layer, x_BTD, tables, plan, partial(row.read, count=columns))
            return constrain(x_BTD, "BL_"), None

        layers, last = without_adapters(layers) if self.layers.gated else layers, None
        if columns is not None:
            layers, last = (jax.tree.map(lambda w: w[part], layers) for part in (slice(-1), -1))  # noqa: B023
        plans = [planned(kind.window, S) for kind in spec.kinds]
        bodies = [partial(body, tables=tables, plan=plan) for tables, plan in zip(rotary, plans, strict=True)]
        x_BTD = _scan_in_turn([*map(checkpointed, bodies)], x_BTD, layers, unroll)
        if last is not None:
            turn = (spec.num_layers - 1) % len(spec.kinds)
            rest = partial(bodies[turn], plan=planned(spec.kinds[turn].window, columns), columns=columns)
            x_BTD, _ = rematerialise(rest, remat, in_scan=False)(x_BTD, last)
        return constrain(row.leave(final_norm(x_BTD)), "BL_")

    def embed(self, tokens_BT: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Token embeddings in the compute dtype."""
        return scaled_embedding(self.spec, look_up(self.embedding_VD[...], tokens_BT, self.dtype))

    @compiled_once()
    def logits(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """float32 scores over the vocabulary of final hidden states."""
        return project(x_BTD.astype(self.dtype), self._head(), dtype=jnp.float32)

    @compiled_once()
    def cross_entropy(
        self,
        x_BTD: Float[Array, "B T D"],
        targets_BT: Int[Array, "B T"] | Int[Array, "B T K"],
        supervised_BT: Bool[Array, "B T"],
        shares_BTK: Float[Array, "B T K"] | None = None,
    ) -> Float[Array, "B T"]:
        """That of the logits of `x_BTD`, never there as a whole, where it is wanted, else 0; K targets have shares."""
        loss = CrossEntropy() if shares_BTK is None else Shares()
        return self._column_loss(loss, x_BTD, supervised_BT, targets_BT=targets_BT, teacher_BTD=shares_BTK)[0]

    @compiled_once("best")
    def divergence(
        self,
        x_BTD: Float[Array, "B T D"],
        teacher_BTD: Float[Array, "B T D"],
        wanted_BT: Bool[Array, "B T"],
        best: int = 0,
    ) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
        """(total variation, KL) of a teacher's distribution and that of `x_BTD`, see `Divergence`; the same way."""
        return self._column_loss(Divergence(best), x_BTD, wanted_BT, teacher_BTD=teacher_BTD)

    @compiled_once()
    def certainty(
        self, x_BTD: Float[Array, "B T D"], targets_BT: Int[Array, "B T"], wanted_BT: Bool[Array, "B T"]
    ) -> Float[Array, "B T"]:
        """Entropy where the best token is the target, 0 elsewhere; the same way."""
        return self._column_loss(Certainty(), x_BTD, wanted_BT, targets_BT=targets_BT)[0]

    @compiled_once("count")
    def best(
        self, x_BTD: Float[Array, "B T D"], wanted_BT: Bool[Array, "B T"], *, count: int
    ) -> tuple[Float[Array, "B T K"], Int[Array, "B T K"]]:
        """The `count` largest logits of each wanted column, and whose they are; the same way."""
        return best_tokens(x_BTD, self._head(), wanted_BT, count)

    def _column_loss(self, loss, x_BTD, wanted_BT, **given):
        return column_loss(loss, x_BTD, self._head(), wanted_BT, frozen=self.layers.gated, **given)

    def _head(self):
        return self.embedding_VD[...].T if self.spec.tied else self.head_DV[...]


def _scan_in_turn(bodies, x_BTD, layers, unroll):
    """One layer after the other, by the bodies in turn: a scan over whole turns, so that each body is compiled once.

    Layers that do not fill a turn are written out after it.
    """
    turn, count = len(bodies), len(jax.tree.leaves(layers)[0])
    if turn == 1:
        return jax.lax.scan(bodies[0], x_BTD, layers, unroll=unroll)[0]
    scanned = count // turn * turn

    def written_out(x_BTD, layers, last=turn):
        for index, body in enumerate(bodies[:last]):
            x_BTD, _ = body(x_BTD, jax.tree.map(lambda w: w[index], layers))  # noqa: B023
        return x_BTD, None

    if scanned:
        turns = jax.tree.map(lambda w: w[:scanned].reshape(-1, turn, *w.shape[1:]), layers)
        x_BTD, _ = jax.lax.scan(written_out, x_BTD, turns, unroll=unroll)
    return written_out(x_BTD, jax.tree.map(lambda w: w[scanned:], layers), last=count - scanned)[0]


def rematerialise(body, remat: str, in_scan: bool = True):
    """Wraps a layer in `jax.checkpoint` by a name of REMAT_POLICIES."""
    if remat not in REMAT_POLICIES:
        raise InputError(f"remat {remat!r} is unknown; choose one of {', '.join(REMAT_POLICIES)}")
    if remat == "none":
        return body
    # Inside a scan CSE cannot undo it; outside it would.
    return jax.checkpoint(body, policy=REMAT_POLICIES[remat], prevent_cse=not in_scan)


def _init(spec, name, shape, rngs, dtype):
    """Norms that multiply by one, biases zero, matrices normal(0.02) as the families' own configs say."""
    if "norm" in name or "bias" in name:
        return nnx.Param(jnp.full(shape, int("norm" in name and not spec.centered_norms), dtype))
    return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, dtype))
