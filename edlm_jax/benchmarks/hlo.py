"""What a compiled program's HLO text says: collectives, arrays, bytes that move; and how fast it could be at best."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from edlm_jax.parallel.devices import Device

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")  # with its layout, which may name a memory: S(1)
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_CONTROL = {"while", "conditional", "call", "async-start"}  # whose computations run by themselves
_TRIPS = re.compile(r'"?known_trip_count"?:\{"?n"?:"?(\d+)"?\}')
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"}
_FREE |= {"partition-id", "replica-id", "optimization-barrier", "async-start", "async-update", "opt-barrier"}
_CUTS = {"dynamic-slice", "slice", "gather", "slice-start"}


class Instruction(NamedTuple):
    """A line of a computation."""

    root: bool
    result: str
    kind: str  # its type
    op: str
    rest: str  # of the line, behind the operation's bracket

    @property
    def operands(self) -> list[str]:
        """Their names."""
        return re.findall(r"%([\w.-]+)", self.rest.split(")")[0])

    @property
    def called(self) -> list[str]:
        """The computations that it calls."""
        branches = (re.findall(r"[\w.-]+", names) for names in _BRANCHES.findall(self.rest))
        return [*_CALLED.findall(self.rest), *(name for names in branches for name in names)]


def collectives(text: str) -> dict[str, dict[str, int]]:
    """kind -> {"count", "bytes"} of one run of the program on one chip.

    Loops count as often as they are known to turn, those of unknown length (chunks of the loss, blocks of a decoding)
    once. Bytes are those of the larger side: what an all-gather gives, what a reduce-scatter takes.
    """
    bodies, entry = computations(text)
    found: dict[str, dict[str, int]] = defaultdict(lambda: dict(count=0, bytes=0))
    for name, times in runs(bodies, entry).items():
        sizes = {i.result: array_bytes(i.kind, near=True) for i in bodies[name]}
        for i in bodies[name]:
            op, base = i.op, i.op.removesuffix("-start")
            if base == "all-reduce" and "reduce-scatter" in name:  # TPUs have it as a fusion of that name
                op = base = "reduce-scatter"
            if base in KINDS:
                taken = sum(sizes.get(operand, 0) for operand in i.operands)
                size = max(sizes[i.result], taken) if op == base else _started_bytes(base, i.kind)
                found[base]["count"] += times
                found[base]["bytes"] += times * size
    return {kind: found[kind] for kind in KINDS if kind in found}


def shapes(text: str) -> set[tuple[int, ...]]:
    """Of every array in the program."""
    return {tuple(map(int, dims.split(","))) for _, dims, _ in _ARRAY.findall(text) if dims}


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """(the instructions of each by its name, the name of the entry)"""
    bodies, entry, current = {}, "", None
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = bodies.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            current.append(Instruction(bool(match[1]), *match.groups()[1:]))
    return bodies, entry


def runs(bodies: dict[str, list[Instruction]], entry: str, *, inside_fusions: bool = True) -> dict[str, int]:
    """How often each computation runs: the sum over its callers, times the turns of a loop."""
    found: dict[str, int] = defaultdict(int)

    def visit(name, times):
        found[name] += times
        for i in bodies[name]:
            turns = _turns(bodies, i.rest) if i.op == "while" else 1
            for other in i.called if inside_fusions or i.op in _CONTROL else ():
                if other in bodies:
                    visit(other, times * turns)

    visit(entry, 1)
    return found


def _turns(bodies, rest: str) -> int:
    """Of a loop: what the compiler noted, or the constant that its condition counts up to; without either 1."""
    if trips := _TRIPS.search(rest):
        return int(trips[1])
    condition = bodies[re.search(r"condition=%?([\w.-]+)", rest)[1]]
    limits = [i.rest for i in condition if i.op == "constant" and i.kind.startswith("s32[]")]
    return int(limits[0].split(")")[0]) if len(limits) == 1 else 1


def array_bytes(kind: str, *, first: bool = False, near: bool = False) -> int:
    """Of a type's arrays (or the first) in the device's main memory, with `near` in its other memories, too."""
    found = _ARRAY.findall(kind)[: 1 if first else None]
    return sum(_bytes(dtype, dims) for dtype, dims, layout in found if near or "S(" not in layout)


def _started_bytes(base: str, kind: str) -> int:
    """An asynchronous start's type is (operands, results, ...), each maybe a tuple; an all-reduce has results alone."""
    if base == "all-reduce":
        return array_bytes(kind, near=True)
    parts = re.findall(r"\([^()]*\)|[a-z]\w*\[[\d,]*\]", re.sub(r"\{[^{}]*\}", "", kind)[1:-1])
    return max(array_bytes(part, near=True) for part in parts)


def _bytes(dtype: str, dims: str) -> int:
    """Of one array: bf16, s4 and f8e4m3fn say their numbers' bits; a truth value takes a byte."""
    found = re.search(r"\d+", dtype)
    bits = 8 if dtype == "pred" else int(found[0]) if found else 32
    return math.prod(map(int, filter(None, dims.split(",")))) * bits // 8


def link_bytes(collectives: Mapping[str, Mapping[str, int]]) -> int:
    """What goes over a device's links, one way; an all-reduce sends its array twice. (n - 1) / n is taken for 1."""
    sizes = {kind: found["bytes"] for kind, found in collectives.items()}
    return sum(sizes.values()) + sizes.get("all-reduce", 0)


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
