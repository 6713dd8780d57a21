"""A run: what a config says, looked up once and made into typed parts. What lies below takes the part that it needs."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from edlm_jax.attention import Tiles
from edlm_jax.data.pipeline import Data
from edlm_jax.diffusion.registry import NOISES, TERMS
from edlm_jax.diffusion.streams import Layout, find_layout
from edlm_jax.diffusion.terms import NextToken
from edlm_jax.errors import InputError
from edlm_jax.models.lora import Lora, in_order
from edlm_jax.models.spec import PRIORS, Conversion
from edlm_jax.parallel.mesh import Axes, make_mesh
from edlm_jax.training.block_lengths import BlockLengths
from edlm_jax.training.checkpoint import Saves
from edlm_jax.training.config import to_json, validate
from edlm_jax.training.initial import Start
from edlm_jax.training.objective import Objective
from edlm_jax.training.optimizer import SCHEDULES, Optimizer
from edlm_jax.training.step import Numbers


@dataclass(frozen=True)
class Evaluation:
    """config.evaluation, which says what its fields mean."""

    tasks: Sequence[Mapping[str, Any]]
    thresholds: Sequence[float]
    batch_size: int
    timed_prompts: int


@dataclass(frozen=True)
class Run:
    """Everything about a run but its work directory."""

    config: str  # all of it as JSON
    steps: int
    log_every: int
    eval_every: int
    remat: str
    start: Start
    teacher: str  # a model's directory or hub id; "" = none
    objective: Objective  # of any model: `of_model` tells it which
    block_lengths: BlockLengths
    numbers: Numbers
    data: Data
    optimizer: Optimizer
    saves: Saves
    evaluation: Evaluation
    axes: Axes

    @classmethod
    def of(cls, c: ConfigDict) -> "Run":
        """Raises InputError for a config that no run should start from: what would leak or lie."""
        validate(c)
        o = c.objective
        layout = find_layout(o.pattern, o.block_length, o.alignment, o.noisy_length)
        objective = _objective(o, layout)
        optimizer = Optimizer(**{**c.optimizer, "schedule": SCHEDULES[c.optimizer.schedule]}, steps=c.steps)
        data = {name: value for name, value in c.data.items() if name != "tokenizer"}
        return cls(
            config=to_json(c),
            **{name: c[name] for name in ("steps", "log_every", "eval_every", "remat")},
            start=Start(
                **{**c.init, "hf_config": c.init.hf_config.to_dict()},
                tokenizer=c.data.tokenizer,
                conversion=_conversion(c, layout),
                seed=c.seed,
                dtype=c.dtype,
                tiles=Tiles(*c.attention_tiles) if c.attention_tiles else None,
                lora=Lora(**{**c.lora, "targets": in_order(c.lora.targets)}) if c.lora.rank else None,
            ),
            teacher=o.teacher,
            objective=objective,
            block_lengths=BlockLengths.of(o, objective.layout, c.data.length),
            numbers=Numbers.of(c.seed, optimizer, o.half_life),
            data=Data(**data, block_length=layout.block_length, grid=o.grid, seed=c.seed),
            optimizer=optimizer,
            saves=Saves(**c.checkpoint),
            evaluation=Evaluation(**c.evaluation),
            axes=Axes(**c.mesh),
        )

    def make_mesh(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """The mesh of its axes, with whole rows for its devices, and whole blocks for those that share a row."""
        mesh, accumulation = make_mesh(self.axes, devices), max(self.optimizer.accumulation, 1)
        data, fsdp, pieces = (mesh.shape[axis] for axis in ("data", "fsdp", "context"))
        if self.data.batch_size % (data * fsdp * accumulation):
            raise InputError(
                f"config.data.batch_size={self.data.batch_size} is not divisible by data x fsdp x accumulation = "
                f"{data} x {fsdp} x {accumulation}"
            )
        layout = self.objective.layout
        if self.objective.anneal_steps and pieces > 1:
            raise InputError("config.objective.anneal_steps > 0 needs config.mesh.context=1: its rows stay whole")
        C = layout.cut or 1
        for name, length in ("data.length", self.data.length), ("objective.noisy_length", layout.noisy_length):
            if length % (pieces * C):
                raise InputError(
                    f"config.{name}={length} is not whole blocks of {C} on each of config.mesh.context={pieces} "
                    f"devices: choose a multiple of {pieces * C}, or fewer devices"
                )
        return mesh


def _objective(o: ConfigDict, layout: Layout) -> Objective:
    """AR has its own term alone, other layouts those that the config weighs."""
    weighed = tuple(term(o[f"{name}_weight"]) for name, term in TERMS.items() if o[f"{name}_weight"])
    terms = weighed if layout.noisy else (NextToken(1.0),)
    if not terms:
        names = " and ".join(f"{name}_weight" for name in TERMS)
        raise InputError(f"config.objective: {names} are all 0, so there is no loss")
    for term in terms:
        term.check(layout)
    if not any(term.needs_noise for term in terms):
        return Objective(dataclasses.replace(layout, noisy_length=0), None, terms)
    return Objective(layout, None, terms, o.anneal_steps).under(NOISES[o.noise](0, 1, o))


def _conversion(c: ConfigDict, layout: Layout) -> Conversion | None:
    """What a prompt sees at decoding time follows what training showed the model, unless the config says otherwise."""
    o = c.objective
    if not layout.noisy:
        return None
    prefill = layout.prefill if o.prefill == "auto" else o.prefill
    prior, mask_id = o.noise if o.noise in PRIORS else "masks", max(c.init.mask_token_id, 0)
    adapted = c.lora.columns if c.lora.rank else "all"
    return Conversion(mask_id, o.block_length, o.pattern, o.alignment, prefill, o.grid, noise=prior, adapted=adapted)
