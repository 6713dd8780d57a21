"""How much of a batch a device takes at once: the fewest micro-batches that fit into its memory, and what these keep.

Weights are gathered and gradients summed over devices once for each micro-batch, so fewer of them move less. What room
is left keeps results of the forward pass that the backward pass would compute again. The compiler says what a step
needs before anything runs.
"""

import bisect
import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from edlm_jax.files import read_json, write_whole
from edlm_jax.models.spec import ModelSpec
from edlm_jax.models.transformer import REMAT_POLICIES
from edlm_jax.parallel.devices import memory_of
from edlm_jax.parallel.mesh import BATCH_SPEC
from edlm_jax.parallel.processes import largest
from edlm_jax.training.initial import abstract_state
from edlm_jax.training.run import Run
from edlm_jax.training.step import make_train_step
from edlm_jax.training.teacher import find_teacher

_SHARE = 0.95  # of a device's memory: the rest is for the next batch, and for arrays that lie badly
# What jax's error says of a program that does not fit; it has the status in no other form (as of jax 0.10.2).
_FULL = "RESOURCE_EXHAUSTED"
_NAME = "memory.json"  # a Room by devices
AUTO = "auto"
_POLICIES = tuple(REMAT_POLICIES)  # each computes more again than the one before, and keeps less


def lower_step(run: Run, spec: ModelSpec, mesh: Mesh) -> jax.stages.Lowered:
    """The training step, traced for a mesh whose devices need not be here."""
    objective, B, L = run.objective.of_model(spec), run.data.batch_size, run.data.length
    graphdef, state = abstract_state(run.start, run.optimizer, spec, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    teacher = find_teacher(run, spec, mesh)
    numbers = run.numbers._replace(teacher=teacher and teacher.abstract)
    how = dict(lora=run.start.lora, remat=run.remat, teacher=teacher)
    step = make_train_step(graphdef, objective, run.optimizer, shardings, **how)
    column = jax.ShapeDtypeStruct((B, L), jnp.int32, sharding=NamedSharding(mesh, BATCH_SPEC))
    batch = dict.fromkeys(("tokens", "segment_ids", "positions", "loss_mask"), column)
    with jax.set_mesh(mesh):
        return step.lower(state, batch, numbers, block_length=objective.layout.block_length)


def compile_if_it_fits(lowered: jax.stages.Lowered, **options) -> jax.stages.Compiled | str:
    """The program, or in one line why the compiler finds no room for it."""
    try:
        return lowered.compile(**options)
    except jax.errors.JaxRuntimeError as error:
        if _FULL not in str(error):
            raise
        return " ".join(str(error).split())[:300]


class Room(NamedTuple):
    """How a step uses memory: micro-batches, and what the backward pass computes again (config.remat)."""

    micro_batches: int
    remat: str

    def of(self, run: Run) -> Run:
        """The run under it."""
        optimizer = dataclasses.replace(run.optimizer, accumulation=self.micro_batches)
        return dataclasses.replace(run, optimizer=optimizer, remat=self.remat)


def is_open(run: Run) -> bool:
    """Is it left to the device's memory how the step is computed?"""
    return not run.optimizer.accumulation or run.remat == AUTO


def find_room(run: Run, mesh: Mesh, fits: Callable[[Room], bool]) -> Room:
    """The config's, or, where accumulation is 0, the fewest micro-batches that fit; where none do, one row a device.

    Where remat is "auto", so many fit as do when everything is computed again; then as much is kept as fits. `fits` is
    asked of few, as a step that fits does so in smaller pieces, too.
    """
    remat, count = _POLICIES[-1] if run.remat == AUTO else run.remat, run.optimizer.accumulation
    if not count:
        rows = run.data.batch_size // (mesh.shape["data"] * mesh.shape["fsdp"])
        counts = [count for count in range(1, rows + 1) if rows % count == 0]
        count = counts[bisect.bisect_left(counts[:-1], True, key=lambda count: fits(Room(count, remat)))]
    lighter = [Room(count, policy) for policy in reversed(_POLICIES[:-1])] if run.remat == AUTO else []
    return [Room(count, remat), *itertools.takewhile(fits, lighter)][-1]


def fits(peak_bytes: int, memory_bytes: int) -> bool:
    """Does a step with this peak leave the little that a run needs beside it?"""
    return peak_bytes <= _SHARE * memory_bytes


def needed(memory, platform: str) -> int:
    """The peak in bytes, by a program's `memory_analysis`; that of CPUs can leave out the temporaries."""
    if platform == "tpu":  # what its compiler holds against the memory; temporaries may be beyond (docs/compile.md)
        return memory.peak_memory_in_bytes
    return max(memory.peak_memory_in_bytes, memory.argument_size_in_bytes + memory.temp_size_in_bytes)


def fit(run: Run, spec: ModelSpec, mesh: Mesh, workdir: Path | None = None) -> Run:
    """The run with what it leaves open decided for the devices that are here.

    Where their memory is not known (CPU): one row each at a time, everything computed again. With the work directory
    of a run that goes on: as it began on such devices, to the last bit.
    """
    if not is_open(run):
        return run
    device = mesh.local_devices[0]
    memory = memory_of(device)

    def fits_here(room: Room) -> bool:
        program = compile_if_it_fits(lower_step(room.of(run), spec, mesh))
        return not isinstance(program, str) and fits(needed(program.memory_analysis(), device.platform), memory)

    known = _remembered(workdir).get(_place(run, mesh)) if workdir else None
    if known and run.optimizer.accumulation in (0, known[0]) and run.remat in (AUTO, known[1]):
        room = Room(*known)
    else:
        room = find_room(run, mesh, fits_here if memory else lambda room: False)
    # The most cautious of all processes'.
    return Room(largest(room.micro_batches), _POLICIES[largest(_POLICIES.index(room.remat))]).of(run)


def remember(run: Run, mesh: Mesh, workdir: Path) -> None:
    """Writes down, in the work directory, what `fit` shall find in it when the run goes on."""
    if jax.process_index() == 0:
        rooms = _remembered(workdir) | {_place(run, mesh): Room(run.optimizer.accumulation, run.remat)}
        write_whole(workdir / _NAME, json.dumps(rooms, indent=2))


def _remembered(workdir: Path) -> dict[str, Any]:
    path = workdir / _NAME
    return read_json(path) if path.exists() else {}


def _place(run: Run, mesh: Mesh) -> str:
    tiles = run.start.tiles or "default"
    return f"{mesh.devices.flat[0].device_kind} as {dict(mesh.shape)}, {tiles} tiles"
