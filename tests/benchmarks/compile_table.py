"""docs/compile.md from reports of `edlm compile --json`: `python -m tests.benchmarks.compile_table docs/compile`."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from edlm_jax.benchmarks.hlo import link_bytes

_HEAD = """# What compiles and fits

Training step and decoder of each config, compiled by the TPU and the GPU compiler for devices that were not there
(`edlm compile`). Memory, collectives and kernels are the compiler's, model FLOPs follow from the shapes; nothing was
run, so nothing here is a speed. Rows are of 4096 tokens. Collectives are of one device and one step, loops of known
length counted out; the decoder's are not shown. What they send over links is their sum, an all-reduce twice; before
micro-batches filled memory (one row a device at a time, everything computed again, no `mesh.data` where there is one
slice) it was the other figure, from docs/compile/before. The TPU rows' micro-batches were given, not searched for.
"At best" is a bound, never a measurement: what the step computes, moves in memory and sends over links, each over
the published peak of the device, as if all overlapped; the longest binds, and the column beside says what would change
it. A TPU's peak is what its compiler holds against the device's memory; arguments and temporaries together are more, as
they share places. The seconds to compile are of two CPU cores, shared with other work. Made from docs/compile by
`python -m tests.benchmarks.compile_table docs/compile`.

Over all chips of a torus of three axes (v5p, TPU7x) the TPU compiler gathers weights by all-reduces: each chip's part,
zeros around it, is summed over all, which sends twice what a gather sends. Over as many chips of two axes, or over a
half or a quarter of the three, it gathers, and over a part it scatters gradients, too. In MiB, of a matrix of 96 in
bfloat16, multiplied twice (`python -m tests.benchmarks.torus`; a width of 8192 gives a chip 128 rows of it: lanes
left empty are not why):

| | all-gather | all-reduce | reduce-scatter |
| --- | --- | --- | --- |
| v5e:8x8, v5p:8x8x1, over 64 chips | 96 | 96 | |
| v5p:4x4x4, over 64 (four times the matrix: 768) | | 192 | |
| v5p:4x4x4, over 32, over 16 | 96 | 3, 6 | 96 |
| tpu7x:4x4x4, over 128 devices | | 96 | 192 |

So there weights are best shared out over a part of the slice, and `efficient_dlm_8b:torus` does so over 16 devices. At
best the all-reduces cost nothing, as products bind: on v5p:4x4x4, fsdp 64, one row a device at a time, they take 2.5 s
of links beside 18.0 s of products, on tpu7x:4x4x4 2.2 beside 3.6 (docs/compile/before). A bound that counts all links
is farther from the truth where axes go unused. On v5e:4x4, a torus of two axes, `mesh.data` does not pay: 1.5B in 32
micro-batches sent 894 GiB over links with `mesh.data=4` (not kept as JSON), for each of them sums over `data`, too, and
416 without.

Products bind every row, and about a quarter of them is the forward pass computed again. With more micro-batches there
would be room to keep it; they send more over links, which do not bind. The fewest are chosen all the same: a bound says
nothing of how well links and memory hide behind products. A denoising forward is bound by memory: it reads all weights
for one block a group of devices, and more rows would cost little more.
"""
_GPUS = """
## GPUs

The kernels are attention's own; shared memory is the largest of a block, of what the device allows, and spills are the
most bytes of a thread.
"""
_COLUMNS = ("config", "devices", "mesh", "rows x micro-batches, remat", "peak / memory, GiB", "arguments, temporaries")
_COLUMNS += ("decoder peak", "model FLOPs", "tiles / fewest", "collectives, GiB", "over links, GiB (before)")
_COLUMNS += ("at best, ms: products, memory, links", "bound, MFU", "what would change it", "denoising at best, ms")
_COLUMNS += ("compiled in",)
_KERNELS = ("shared memory", "spills")


def table(pairs: Sequence[tuple[dict, dict | None]]) -> str:
    """The page, one line a report; beside each the one before, if there is one."""
    tpus = [pair for pair in pairs if "kernels" not in pair[0]["train_step"]]
    gpus = [pair for pair in pairs if "kernels" in pair[0]["train_step"]]
    commands = "".join(f"    {report['command']} --json\n" for report, _ in pairs)
    page = f"{_HEAD}\n## TPUs\n\n{_table(tpus, _COLUMNS)}{_GPUS}\n{_table(gpus, _COLUMNS + _KERNELS)}"
    return f"{page}\n## The commands\n\n{commands}"


def _table(pairs: Sequence[tuple[dict, dict | None]], columns: tuple[str, ...]) -> str:
    rows = [columns, ["---"] * len(columns), *(_cells(*pair) for pair in pairs)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def _cells(report: dict, before: dict | None) -> list[str]:
    gib = lambda size: f"{size / 2**30:.1f}"  # noqa: E731
    step, decoder = report["train_step"], report["decoder"]
    groups = max(report["num_slices"], report.get("hosts", 1) if "kernels" in step else 1)
    mesh = " x ".join(f"{axis} {size}" for axis, size in report["mesh"].items() if size > 1)
    found = ", ".join(f"{kind} {gib(value['bytes'])}" for kind, value in step["collectives"].items())
    cells = [
        _config(report["command"]),
        f"{f'{groups} x ' if groups > 1 else ''}{report['topology']}",
        mesh or "one device",
        f"{step['batch_size'] // step['micro_batches']} x {step['micro_batches']}, {step['remat']}",
        f"{gib(step['peak_bytes'])} / {gib(report['memory_per_device'])}",
        f"{gib(step['argument_bytes'])}, {gib(step['temporary_bytes'])}",
        gib(decoder["peak_bytes"]),
        f"{step['model_flops']:.2e}",
        f"{step['attention_tiles']['over_ideal']:.2f}",
        found or "none",
        _links(step) + (f" ({_links(before['train_step'])})" if before else ""),
        *_bounds(step["at_best"], decoder["denoise_at_best"]),
        f"{step['compile_seconds']:.0f} s",
    ]
    if kernels := step.get("kernels"):
        shared, spills = (max(kernel[name] for kernel in kernels) for name in ("shared_bytes", "spill_bytes"))
        cells += [f"{shared} / {step['shared_limit']}", str(spills)]
    return cells


def _config(command: str) -> str:
    """Its name, whether the command had that or the file's: qwen3_0_6b:planned."""
    (given,) = re.findall(r"--config=(\S+)", command)
    return given.removeprefix("configs/").replace(".py", "")


def _links(step: dict) -> str:
    return f"{link_bytes(step['collectives']) / 2**30:.1f}"


def _bounds(step: dict, denoise: dict) -> list[str]:
    parts = ("products", "memory", "links")
    forward = max(denoise[f"{part}_ms"] for part in parts)
    times = ", ".join(f"{step[f'{part}_ms']:.0f}" for part in parts)
    bound = f"{step['bound_by']}, {step['mfu_at_best']:.2f}"
    return [times, bound, _change(step), f"{forward:.2g}, {denoise['bound_by']}"]


def _change(step: dict) -> str:
    """What would make the best of a step better."""
    bound_by, longest = step["bound_by"], step[f"{step['bound_by']}_ms"]
    if bound_by != "products":
        return {"links": "fewer micro-batches, another mesh", "memory": "more rows a micro-batch"}[bound_by]
    useful = step["mfu_at_best"] * longest
    return f"nothing computed again: {useful:.0f} ms" if step["mfu_at_best"] < 0.995 else "a faster device"


def main(directory: str) -> None:
    """Writes DIRECTORY.md from DIRECTORY/*.json; DIRECTORY/before has earlier reports, in files of the same names."""
    read = lambda path: json.loads(path.read_text(encoding="utf-8"))  # noqa: E731
    paths = sorted(Path(directory).glob("*.json"))
    earlier = [path.parent / "before" / path.name for path in paths]
    pairs = [(read(path), read(other) if other.exists() else None) for path, other in zip(paths, earlier, strict=True)]
    Path(f"{directory.rstrip('/')}.md").write_text(table(pairs), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.benchmarks.compile_table DIRECTORY")
    main(sys.argv[1])
