"""What a compiled program's HLO text says: its collectives, how often they run, and its widest arrays."""

import math
import re
from collections import defaultdict
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")  # with its layout, which may name a memory: S(1)
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_CONTROL = {"while", "conditional", "call", "async-start"}  # whose computations run by themselves
_TRIPS = re.compile(r'"?known_trip_count"?:\{"?n"?:"?(\d+)"?\}')


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
    """Of an asynchronous start's type, (operands, results, ...), each of them one array or a tuple where several were
    combined; an all-reduce has results alone.
    """
    if base == "all-reduce":
        return array_bytes(kind, near=True)
    parts = re.findall(r"\([^()]*\)|[a-z]\w*\[[\d,]*\]", re.sub(r"\{[^{}]*\}", "", kind)[1:-1])
    return max(array_bytes(part, near=True) for part in parts)


def _bytes(dtype: str, dims: str) -> int:
    """Of one array: bf16, s4 and f8e4m3fn say their numbers' bits; a truth value takes a byte."""
    found = re.search(r"\d+", dtype)
    bits = 8 if dtype == "pred" else int(found[0]) if found else 32
    return math.prod(map(int, filter(None, dims.split(",")))) * bits // 8
