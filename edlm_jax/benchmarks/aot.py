"""Ahead of time: the real training step and decoder compiled for devices that are not there, and what they would need.

Memory, collectives and kernels are the real compiler's; times are not known without the devices.
"""

import functools
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from edlm_jax.attention import InPieces, Tiles, count_tiles
from edlm_jax.attention.splash import TILES, has_partial_tiles
from edlm_jax.attention.triton import TILES as GPU_TILES
from edlm_jax.benchmarks.forward import matrix_parameters
from edlm_jax.benchmarks.gpus import shared_limit
from edlm_jax.benchmarks.hlo import collectives, link_bytes, shapes, speed_bound, traffic
from edlm_jax.benchmarks.kernels import kernels
from edlm_jax.benchmarks.topologies import topology_devices
from edlm_jax.decoding.ends import read_ends
from edlm_jax.decoding.engine import decode_whole
from edlm_jax.decoding.modes import Diffusion
from edlm_jax.decoding.modes.mode import Call
from edlm_jax.decoding.sampling import Sampling
from edlm_jax.diffusion import Layout
from edlm_jax.models.cache import DecodingWeights
from edlm_jax.models.spec import ModelSpec
from edlm_jax.parallel.devices import describe
from edlm_jax.parallel.mesh import decoding_mesh, slice_of
from edlm_jax.parallel.sharding import DECODING, param_shardings
from edlm_jax.training.checkpoint import abstract_model, with_shardings
from edlm_jax.training.fitting import Room, compile_if_it_fits, find_room, fits, lower_step, needed
from edlm_jax.training.initial import planned_spec
from edlm_jax.training.metrics import again_flops, step_flops
from edlm_jax.training.run import Run

PROMPT, NEW_TOKENS = 1024, 512  # columns of what the decoder is compiled for


def compile_report(run: Run, topology: str, num_slices: int = 1, hosts: int = 1) -> dict[str, Any]:
    """Compiles the step and, for a diffusion model, the decoder; returns what `edlm compile --json` prints."""
    devices = topology_devices(topology, num_slices, hosts)
    mesh, spec = run.make_mesh(devices), planned_spec(run.start)
    kind = devices[0].device_kind
    report = dict(
        topology=topology,
        num_slices=num_slices,
        hosts=len({device.process_index for device in devices}),
        device_kind=kind,
        devices=len(devices),
        chips=len(devices) // describe(kind).per_chip,
        memory_per_device=describe(kind).memory_bytes,
        mesh=dict(mesh.shape),
        train_step=train_step_report(run, spec, mesh),
    )
    if spec.conversion is not None:
        report["decoder"] = decoder_report(spec, run.start.dtype, devices)
    report["fits"] = all(report[name]["fits"] for name in ("train_step", "decoder") if name in report)
    return report


def train_step_report(run: Run, spec: ModelSpec, mesh: Mesh) -> dict[str, Any]:
    """The optimizer step of `edlm train` on this mesh."""
    device = mesh.devices.flat[0]

    @functools.cache
    def under(room: Room) -> dict[str, Any]:
        return _compile(lambda: lower_step(room.of(run), spec, mesh), device) | room._asdict()

    known = describe(device.device_kind)
    enough = lambda room: "reason" not in under(room) and fits(under(room)["peak_bytes"], known.memory_bytes)  # noqa: E731
    report = under(find_room(run, mesh, enough))
    objective, B, L = run.objective.of_model(spec), run.data.batch_size, run.data.length
    flops = step_flops(spec, objective, B, L, run.start.lora)
    report |= dict(batch_size=B, length=L, model_flops=flops, flops_per_device=flops / mesh.size)
    if report["fits"]:
        done = flops + again_flops(spec, objective, B, L, report["remat"])
        moved = dict(memory_bytes=report["memory_traffic_bytes"], link_bytes=link_bytes(report["collectives"]))
        report["at_best"] = speed_bound(known, flops=done / mesh.size, useful_flops=flops / mesh.size, **moved)
    layout, tiles = objective.layout, run.start.tiles or (GPU_TILES if device.platform == "gpu" else TILES)
    if not layout.noisy_length:  # what chosen copies visit is known inside the step alone
        report["attention_tiles"] = tiles_report(layout, L, tiles, mesh.shape["context"])
    return report


def tiles_report(layout: Layout, length: int, tiles: Tiles, pieces: int) -> dict[str, Any]:
    """Tiles of one head of one row that the forward kernel computes, against the fewest that tiles of that side can.

    A row in pieces is counted over all of its devices. Of two streams the fewest have density 1/4 + T / 2L.
    """
    width, pattern = layout.columns(length), layout.pattern(length)
    in_pieces = InPieces(pattern, width, pieces).for_queries(width)
    if has_partial_tiles(in_pieces, width, width, tiles):  # else all that is visited is needed
        pattern = in_pieces
    visited, total = count_tiles(pattern, width, width, tiles)
    ideal = layout.fewest_tiles(length / math.sqrt(width * width / total))
    return dict(queries=tiles.queries, keys=tiles.keys, visited=visited, total=total, over_ideal=visited / ideal)


def decoder_report(spec: ModelSpec, dtype: str, devices: list[jax.Device]) -> dict[str, Any]:
    """The block decoder on one slice: key heads over `tensor`, as far as they divide, and a row for each group."""
    devices = [device for device in devices if slice_of(device) == slice_of(devices[0])]
    tensor = math.gcd(spec.num_kv_heads, len(devices))
    mesh = decoding_mesh(tensor, devices)
    rows, C = mesh.shape["data"], spec.conversion.block_length
    graphdef, params = abstract_model(spec, dtype, mesh)
    with jax.set_mesh(mesh):
        weights = jax.eval_shape(lambda params: DecodingWeights.of(nnx.merge(graphdef, params)), params)
    weights = with_shardings(weights, param_shardings(mesh, weights, DECODING))
    call = Call(spec, np.full(rows, NEW_TOKENS, np.int32), Sampling(), read_ends(None), np.zeros(rows, np.uint32))
    mode = Diffusion(prefill="block_causal", grid="response", commit="fused").completed(spec)
    run = mode.start(weights, [[0] * PROMPT] * rows, call)

    def abstract(x) -> jax.ShapeDtypeStruct:
        axes = PartitionSpec("data") if np.shape(x)[:1] == (rows,) else PartitionSpec()  # what has rows, by row
        return jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x), sharding=NamedSharding(mesh, axes))

    def lower() -> jax.stages.Lowered:
        decode = jax.jit(decode_whole.function, static_argnames="settings")
        with jax.set_mesh(mesh):
            return decode.lower(weights, jax.tree.map(abstract, run.request), run.settings)

    report = _compile(lower, devices[0])
    if report["fits"]:
        # A denoising forward reads the matrices and multiplies them with a block; the cache is small beside them.
        matrices = matrix_parameters(spec) / tensor
        flops, read = 2.0 * C * matrices, int(jnp.dtype(dtype).itemsize * matrices)
        costs = dict(memory_bytes=read, link_bytes=0, useful_flops=flops)
        report["denoise_at_best"] = speed_bound(describe(devices[0].device_kind), flops=flops, **costs)
    return report | dict(mesh=dict(mesh.shape), rows=rows, prompt=PROMPT, new_tokens=NEW_TOKENS, block_length=C)


def _compile(lower: Callable[[], jax.stages.Lowered], device: jax.Device) -> dict[str, Any]:
    on_gpu, began = device.platform == "gpu", time.perf_counter()
    lowered, start = lower(), time.perf_counter()
    with tempfile.TemporaryDirectory() as dump:
        compiled = compile_if_it_fits(lowered, compiler_options=dict(xla_dump_to=dump) if on_gpu else None)
        if isinstance(compiled, str):
            return dict(fits=False, reason=compiled)
        seconds = dict(trace_seconds=start - began, compile_seconds=time.perf_counter() - start)
        found = dict(kernels=kernels(Path(dump)), shared_limit=shared_limit(device.device_kind)) if on_gpu else {}
    memory, text = compiled.memory_analysis(), compiled.as_text()
    peak = needed(memory, device.platform)
    fits = peak <= describe(device.device_kind).memory_bytes
    fits &= all(kernel["shared_bytes"] <= found["shared_limit"] for kernel in found.get("kernels", ()))
    return dict(
        fits=fits,
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        peak_bytes=peak,
        **seconds,
        collectives=collectives(text),
        memory_traffic_bytes=traffic(text),
        widest_arrays=sorted(shapes(text), key=math.prod, reverse=True)[:8],
        **found,
    )
