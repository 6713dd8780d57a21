"""Bytes that a compiled program moves, by its HLO text, and how fast it could be at best."""

from collections.abc import Mapping, Sequence
from typing import Any

from edlm_jax.benchmarks.hlo import Instruction, array_bytes, computations, runs
from edlm_jax.parallel.devices import Device

_ONCE = ("all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"}
_FREE |= {"partition-id", "replica-id", "optimization-barrier", "async-start", "async-update", "opt-barrier"}
_CUTS = {"dynamic-slice", "slice", "gather", "slice-start"}


def link_bytes(collectives: Mapping[str, Mapping[str, int]]) -> int:
    """What goes over a device's links, one way; an all-reduce sends its array twice. (n - 1) / n is taken for 1."""
    sizes = {kind: found["bytes"] for kind, found in collectives.items()}
    return sum(sizes.get(kind, 0) for kind in _ONCE) + 2 * sizes.get("all-reduce", 0)


def speed_bound(
    device: Device, *, flops: float, memory_bytes: int, link_bytes: int, useful_flops: float
) -> dict[str, Any]:
    """Milliseconds of products, memory and links, the longest of them, and the MFU if nothing else cost time.

    A bound, never a measurement: everything is taken to overlap, and every unit to run at its published peak. All of
    one device; empty where the table has no peaks.
    """
    if None in (device.peak_flops, device.memory_rate, device.link_rate):
        return {}
    times = dict(products=1e3 * flops / device.peak_flops, memory=1e3 * memory_bytes / device.memory_rate)
    times["links"] = 1e3 * link_bytes / device.link_rate
    longest = max(times, key=times.__getitem__)
    mfu = useful_flops / (device.peak_flops * times[longest] / 1e3)
    return {f"{name}_ms": value for name, value in times.items()} | dict(bound_by=longest, mfu_at_best=mfu)


def traffic(text: str) -> int:
    """Bytes between memory and cores of one run on one device.

    Every instruction outside of fusions reads its operands and writes its result, as often as its loop turns (once
    where that is unknown). Of an array that is cut, or written to in place, only the part counts; what a TPU keeps in
    its vector memory does not.
    """
    bodies, entry = computations(text)
    total = 0
    for name, times in runs(bodies, entry, inside_fusions=False).items():
        sizes = {i.result: array_bytes(i.kind) for i in bodies[name]}
        total += times * sum(_touched(i, sizes, bodies) for i in bodies[name])
    return total


def _touched(i: Instruction, sizes: Mapping[str, int], bodies: Mapping[str, Sequence[Instruction]]) -> int:
    if i.op in _FREE or i.op.endswith("-done"):
        return 0
    operands = [sizes.get(name, 0) for name in i.operands]
    if i.op in _CUTS:
        return 2 * sizes[i.result] if i.op != "slice-start" else array_bytes(i.kind, first=True)
    if i.op == "dynamic-update-slice":
        return 2 * operands[1]
    if i.op == "fusion":
        body = bodies[i.called[0]]
        return sum(min(_read(body, n), size) for n, size in enumerate(operands)) + min(_written(body), sizes[i.result])
    written = array_bytes(i.kind, first=True) if i.op.endswith("-start") else sizes[i.result]
    return sum(operands) + written


def _read(body: Sequence[Instruction], index: int) -> int:
    """Of a fusion's parameter: of what is only cut, the cuts; nothing of what is only written to in place."""
    return _used(body, next(i for i in body if i.op == "parameter" and i.rest.startswith(f"{index})")))


def _used(body: Sequence[Instruction], value: Instruction) -> int:
    size = 0
    for user in (i for i in body if value.result in i.operands):
        if user.op == "bitcast":
            size += _used(body, user)
        elif user.op in _CUTS and user.operands[0] == value.result:
            size += array_bytes(user.kind)
        elif user.op != "dynamic-update-slice" or user.operands[0] != value.result:
            return array_bytes(value.kind)
    return size


def _written(body: Sequence[Instruction]) -> int:
    """Of a fusion's result: of what is updated in place, the updates."""
    by_name = {i.result: i for i in body}

    def size(i: Instruction) -> int:
        if i.op == "tuple":
            return sum(size(by_name[name]) for name in i.operands)
        if i.op == "bitcast" and i.operands[0] in by_name:
            return size(by_name[i.operands[0]])
        if i.op == "dynamic-update-slice":
            return array_bytes(by_name[i.operands[1]].kind)
        return array_bytes(i.kind)

    return size(next(i for i in body if i.root))
