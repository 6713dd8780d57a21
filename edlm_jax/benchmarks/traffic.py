"""Bytes that a compiled program moves between memory and cores, by its HLO text.

Every instruction outside of fusions reads its operands and writes its result, as often as its loop turns. Of an array
that is cut, or written to in place, only the part counts; what a TPU keeps in its vector memory does not.
"""

from collections.abc import Mapping, Sequence

from edlm_jax.benchmarks.hlo import Instruction, array_bytes, computations, runs

_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"}
_FREE |= {"partition-id", "replica-id", "optimization-barrier", "async-start", "async-update", "opt-barrier"}
_CUTS = {"dynamic-slice", "slice", "gather", "slice-start"}


def traffic(text: str) -> int:
    """Of one run on one device; loops of unknown length count once."""
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
    parameter = next(i for i in body if i.op == "parameter" and i.rest.startswith(f"{index})"))
    return _used(body, parameter)


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
