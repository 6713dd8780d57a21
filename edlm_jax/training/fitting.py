"""How much of a batch a device takes at once: the fewest micro-batches whose step fits into its memory.

Weights are gathered and gradients summed over devices once for each micro-batch, so fewer of them move less. The
compiler says what a step needs before anything runs.
"""

import bisect
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from edlm_jax.files import read_json, write_whole
from edlm_jax.models.spec import ModelSpec
from edlm_jax.parallel.devices import memory_of
from edlm_jax.parallel.mesh import BATCH_SPEC
from edlm_jax.parallel.processes import largest
from edlm_jax.training.initial import abstract_state
from edlm_jax.training.run import Run
from edlm_jax.training.step import make_train_step

_SHARE = 0.95  # of a device's memory: the rest is for the next batch, and for arrays that lie badly
# What jax's error says of a program that does not fit; it has the status in no other form (as of jax 0.10.2).
_FULL = "RESOURCE_EXHAUSTED"
_NAME = "micro_batches.json"  # by devices


def lower_step(run: Run, spec: ModelSpec, mesh: Mesh) -> jax.stages.Lowered:
    """The training step, traced for a mesh whose devices need not be here."""
    objective, B, L = run.objective.of_model(spec), run.data.batch_size, run.data.length
    graphdef, state = abstract_state(run.start, run.optimizer, spec, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    how = dict(lora=run.start.lora, remat=run.remat)
    step = make_train_step(graphdef, objective, run.optimizer, shardings, **how)
    column = jax.ShapeDtypeStruct((B, L), jnp.int32, sharding=NamedSharding(mesh, BATCH_SPEC))
    batch = {name: column for name in ("tokens", "segment_ids", "positions", "loss_mask")}
    with jax.set_mesh(mesh):
        return step.lower(state, batch, run.numbers, block_length=objective.layout.block_length)


def compile_if_it_fits(lowered: jax.stages.Lowered, **options) -> jax.stages.Compiled | str:
    """The program, or in one line why the compiler finds no room for it."""
    try:
        return lowered.compile(**options)
    except jax.errors.JaxRuntimeError as error:
        if _FULL not in str(error):
            raise
        return " ".join(str(error).split())[:300]


def fewest_micro_batches(run: Run, mesh: Mesh, fits: Callable[[int], bool]) -> int:
    """Of a step: the config's, or, where that is 0, the fewest that fit; where none do, one row a device at a time.

    `fits` is asked of few numbers, as a step that fits does so in smaller pieces, too.
    """
    if run.optimizer.accumulation:
        return run.optimizer.accumulation
    rows = run.data.batch_size // (mesh.shape["data"] * mesh.shape["fsdp"])
    counts = [count for count in range(1, rows + 1) if rows % count == 0]
    return counts[bisect.bisect_left(counts[:-1], True, key=fits)]


def fits(peak_bytes: int, memory_bytes: int) -> bool:
    """Does a step with this peak leave the little that a run needs beside it?"""
    return peak_bytes <= _SHARE * memory_bytes


def needed(memory) -> int:
    """The peak in bytes, by a program's `memory_analysis`; a TPU's can lie below the temporaries that it plans."""
    return max(memory.peak_memory_in_bytes, memory.argument_size_in_bytes + memory.temp_size_in_bytes)


def fit(run: Run, spec: ModelSpec, mesh: Mesh, workdir: Path | None = None) -> Run:
    """The run with its micro-batches decided for the devices that are here; where their memory is not known (CPU), one
    row each at a time.

    With the work directory of a run that goes on: in those that it began with on such devices, to the last bit.
    """
    memory = memory_of(mesh.local_devices[0])

    @functools.cache
    def fits_here(count: int) -> bool:
        program = compile_if_it_fits(lower_step(with_micro_batches(run, count), spec, mesh))
        return not isinstance(program, str) and fits(needed(program.memory_analysis()), memory)

    known = _remembered(workdir).get(_place(run, mesh)) if workdir else None
    count = known or fewest_micro_batches(run, mesh, fits_here if memory else lambda count: False)
    return with_micro_batches(run, largest(count))


def remember(run: Run, mesh: Mesh, workdir: Path) -> None:
    """Writes down, in the work directory, what `fit` shall find in it when the run goes on."""
    if jax.process_index() == 0:
        counts = _remembered(workdir) | {_place(run, mesh): run.optimizer.accumulation}
        write_whole(workdir / _NAME, json.dumps(counts, indent=2))


def _remembered(workdir: Path) -> dict[str, int]:
    path = workdir / _NAME
    return read_json(path) if path.exists() else {}


def _place(run: Run, mesh: Mesh) -> str:
    tiles = run.start.tiles or "default"
    return f"{mesh.devices.flat[0].device_kind} as {dict(mesh.shape)}, remat {run.remat}, {tiles} tiles"


def with_micro_batches(run: Run, count: int) -> Run:
    """The run in so many micro-batches a step."""
    return dataclasses.replace(run, optimizer=dataclasses.replace(run.optimizer, accumulation=count))
