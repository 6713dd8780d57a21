"""docs/compile.md from reports of `edlm compile --json`: `python -m edlm_jax.benchmarks.compile_table docs/compile`."""

import json
import sys
from pathlib import Path

_HEAD = """# What compiles and fits

Training step and decoder of each config, compiled by the TPU compiler for chips that were not there (`edlm compile`).
Memory and collectives are the compiler's, model FLOPs follow from the shapes; nothing was run, so nothing here is a
speed. Rows are of 4096 tokens. Collectives are of one chip and one step, loops of known length counted out; the
decoder's are not shown. The seconds to compile are of two CPU cores, some of them shared with other work. Made from
docs/compile/*.json by `python -m edlm_jax.benchmarks.compile_table docs/compile`.

| config | chips | mesh | rows x micro-batches | peak / memory, GiB | arguments, temporaries | decoder peak |\
 model FLOPs | tiles / fewest | collectives, GiB | compiled in |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def table(reports: list[dict]) -> str:
    """The page, one line a report."""
    commands = "".join(f"    {report['command']} --json\n" for report in reports)
    return _HEAD + "".join(map(_line, reports)) + f"\nThe commands:\n\n{commands}"


def _line(report: dict) -> str:
    gib = lambda size: f"{size / 2**30:.1f}"  # noqa: E731
    step, decoder = report["train_step"], report["decoder"]
    slices = f"{report['num_slices']} x " if report["num_slices"] > 1 else ""
    mesh = " x ".join(f"{axis} {size}" for axis, size in report["mesh"].items() if size > 1)
    found = ", ".join(f"{kind} {gib(value['bytes'])}" for kind, value in step["collectives"].items())
    cells = [
        report["command"].split("configs/")[1].split(".py")[0],
        f"{slices}{report['topology']}",
        mesh,
        f"{step['batch_size'] // step['micro_batches']} x {step['micro_batches']}",
        f"{gib(step['peak_bytes'])} / {gib(report['memory_per_device'])}",
        f"{gib(step['argument_bytes'])}, {gib(step['temporary_bytes'])}",
        gib(decoder["peak_bytes"]),
        f"{step['model_flops']:.2e}",
        f"{step['attention_tiles']['over_ideal']:.2f}",
        found,
        f"{step['compile_seconds']:.0f} s",
    ]
    return f"| {' | '.join(cells)} |\n"


def main(directory: str) -> None:
    """Writes DIRECTORY.md from DIRECTORY/*.json."""
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(directory).glob("*.json"))]
    Path(f"{directory.rstrip('/')}.md").write_text(table(reports), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m edlm_jax.benchmarks.compile_table DIRECTORY")
    main(sys.argv[1])
