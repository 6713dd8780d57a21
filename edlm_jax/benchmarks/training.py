"""How fast training is: the real jitted step of a config on the devices that are here, random weights and rows."""

import dataclasses
import math
import statistics
import time
from typing import Any

import jax
import numpy as np

from edlm_jax.models.lora import Lora, partition
from edlm_jax.parallel.mesh import local_rows, to_global
from edlm_jax.reports.progress import Progress
from edlm_jax.training.fitting import fit, needed
from edlm_jax.training.initial import abstract_state, initial_params, initial_state, planned_spec
from edlm_jax.training.metrics import mfu_meter, step_flops
from edlm_jax.training.run import Run
from edlm_jax.training.step import TrainState, make_train_step
from edlm_jax.training.teacher import find_teacher

_WARM_UP = 2  # steps that do not count: the first allocates


def time_train_step(run: Run, steps: int) -> dict[str, Any]:
    """Seconds of a step (the median of `steps`), tokens/s, MFU by formula, and the memory that it takes.

    Tokens are those of the batch, every one of them real: packed rows of four documents each, a clean token once.
    """
    mesh, spec = run.make_mesh(), planned_spec(run.start)
    teacher = find_teacher(run, spec, mesh)
    start = dataclasses.replace(run.start, path="")  # no weights are read: which they are changes no time
    run = fit(dataclasses.replace(run, start=start), spec, mesh)
    B, L, objective = run.data.batch_size, run.data.length, run.objective.of_model(spec)
    graphdef, abstract = abstract_state(start, run.optimizer, spec, mesh)
    rows = local_rows(mesh, B)
    batch = to_global(packed_batch(spec.vocab_size, len(rows), L, objective.layout.block_length), mesh, rows, B)
    with jax.set_mesh(mesh), Progress(_WARM_UP + steps + 1, "bench train") as progress:
        state = initial_state(start, run.optimizer, initial_params(start, spec, mesh), abstract)
        shardings = jax.tree.map(lambda x: x.sharding, abstract)
        numbers = run.numbers._replace(teacher=teacher and teacher.weights())
        how = dict(lora=start.lora, remat=run.remat, teacher=teacher)
        train_step = make_train_step(graphdef, objective, run.optimizer, shardings, **how)
        began = time.perf_counter()
        compiled = train_step.lower(state, batch, numbers, block_length=objective.layout.block_length).compile()
        compile_seconds = time.perf_counter() - began
        progress.done(1, f"compiled in {compile_seconds:.0f} s")
        seconds = []
        for step in range(1, _WARM_UP + steps + 1):
            began = time.perf_counter()
            state, metrics = compiled(state, batch, numbers)
            loss = float(metrics["loss"])  # waits for all of the step: its gradients' norm is a metric too
            jax.block_until_ready(state)
            seconds.append(time.perf_counter() - began)
            progress.done(step + 1, f"step {step}, {seconds[-1]:.3f} s")
    seconds, flops = seconds[_WARM_UP:], step_flops(spec, objective, B, L, start.lora)
    median = statistics.median(seconds)
    return dict(
        steps=steps,
        seconds_per_step=dict(median=median, min=min(seconds), max=max(seconds)),
        tokens_per_second=B * L / median,
        model_flops_per_step=flops,
        model_flops_per_second=flops / median,
        **mfu_meter(flops, start.dtype)(1 / median),
        device_kind=jax.devices()[0].device_kind,
        mesh=dict(mesh.shape),
        batch_size=B,
        length=L,
        micro_batches=run.optimizer.accumulation,
        remat=run.remat,
        compile_seconds=compile_seconds,
        loss=loss,
        peak_bytes=_peak_bytes(compiled),
        state_bytes=state_bytes(abstract, start.lora),
    )


def packed_batch(vocab_size: int, B: int, L: int, C: int) -> dict[str, np.ndarray]:
    """Rows of four documents each, the second half of each a response, which carries loss."""
    length = max(L // 4 // C * C, C)
    document_L, position_L = np.divmod(np.arange(L), length)
    rows = lambda row_L: np.tile(row_L.astype(np.int32), (B, 1))  # noqa: E731
    return dict(
        tokens=np.random.default_rng(0).integers(min(8, vocab_size - 1), vocab_size, (B, L), dtype=np.int32),
        segment_ids=rows(document_L + 1),
        positions=rows(position_L),
        loss_mask=rows(position_L >= length // 2 // C * C),
    )


def state_bytes(state: TrainState, lora: Lora | None) -> dict[str, int]:
    """Of all devices together: parameters, what the optimizer keeps, and the gradients between the two."""
    count = lambda tree: sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))  # noqa: E731
    trained, _ = partition(state.params, lora)
    return dict(parameters=count(state.params), optimizer=count(state.opt_state), gradients=count(trained))


def _peak_bytes(compiled) -> dict[str, int]:
    """Of one device: what the compiler plans for the step, and, where the device counts, what was in use at most."""
    analysis, stats = compiled.memory_analysis(), jax.local_devices()[0].memory_stats() or {}
    planned = {"planned": needed(analysis, jax.default_backend())} if analysis else {}
    return planned | ({"measured": stats["peak_bytes_in_use"]} if "peak_bytes_in_use" in stats else {})
