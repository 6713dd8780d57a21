"""report.json and the tables: what the conversion kept and what it gained, AR beside diffusion."""

import contextlib
import json
import platform
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from edlm_jax.files import write_whole

VERSIONED = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")

_BORDER = 3  # a column's, and the space around what it holds

Report = dict[str, Any]
Rows = tuple[list[str], list[list[str]]]


def describe_machine() -> dict[str, Any]:
    """The devices, processor and package versions that the numbers were measured with."""
    import jax

    from edlm_jax.parallel.devices import usable_cores

    versions = {"python": platform.python_version()}
    for name in VERSIONED:
        with contextlib.suppress(metadata.PackageNotFoundError):  # libtpu is where TPUs are, or compiled for
            versions[name] = metadata.version(name)
    devices = [device.device_kind for device in jax.devices()]
    return dict(hardware=dict(devices=devices, processor=_processor(), cpu_cores=usable_cores()), versions=versions)


def _processor() -> str:
    """The processor's name; platform.processor() is empty on most Linux systems."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_report(report: Report, path: Path) -> None:
    """Write report.json whole or not at all."""
    write_whole(path, json.dumps(report, indent=2) + "\n")


def read_losses(metrics: Path) -> list[tuple[int, float]]:
    """(step, training loss) from a metrics.jsonl."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [(line["step"], line["loss"]) for line in lines if line.get("loss") is not None]


def print_report(report: Report, markdown: bool = False) -> None:
    """Print the tables of whatever parts the report has: for a terminal, or in Markdown for a README."""
    if markdown:
        for header, rows in _all_rows(report):
            print(markdown_table(header, rows))
    else:
        print_tables(_all_rows(report))


def print_tables(tables: Iterable[Rows], stderr: bool = False) -> None:
    """Print tables for a terminal; the columns that one has no room for follow as further tables."""
    console = Console(stderr=stderr, markup=False, emoji=False)  # what stands in brackets is a name, too
    for header, rows in tables:
        for columns in _columns_that_fit(header, rows, console.width):
            table = Table(header_style="bold")
            cells = [[header[column], *(row[column] for row in rows)] for column in columns]
            narrow = 1 + sum(_BORDER + max(map(len, column)) for column in cells) > console.width
            most = console.width - 2 * _BORDER - 2  # a letter of the names stays
            for column in columns:  # the first is text, the others are numbers; where it is narrow, names fold
                width = min(_least(header, rows, column), most) if narrow and column else None
                table.add_column(header[column], justify="right" if column else "left", overflow="fold", width=width)
            for row in rows:
                table.add_row(*(row[column] for column in columns))
            console.print(table)


def _columns_that_fit(header: list[str], rows: list[list[str]], width: int) -> list[list[int]]:
    """The columns of each table, the first in all of them, so that numbers and the words above them stay whole."""
    columns = range(1, len(header))
    room = [_BORDER + _least(header, rows, column) for column in columns]
    names = [row[0] for row in (header, *rows)]
    if 1 + _BORDER + max(len(word) for name in names for word in name.split()) + sum(room) <= width:
        return [[0, *columns]]  # the names fold, between words
    tables, taken = [], width
    for column in columns:
        if taken + room[column - 1] > width:
            tables, taken = [*tables, [0]], 1 + _BORDER + min(max(map(len, names)), width // 3)
        tables[-1].append(column)
        taken += room[column - 1]
    return tables or [[0]]


def _least(header: list[str], rows: list[list[str]], column: int) -> int:
    """The width in which a column's numbers and the words above them stay whole."""
    return max(map(len, [*header[column].split(), *(row[column] for row in rows)]))


# --- Tables as (header, rows) ---


def _all_rows(report: Report) -> Iterator[Rows]:
    columns = {"AR": report["ar"]} if "ar" in report else {}
    for entry in report.get("diffusion", ()):
        columns[f"{entry.get('mode', 'diffusion')}, threshold {entry['threshold']:g}"] = entry
    points = {f"block {e['block_length']}, threshold {e['threshold']:g}": e for e in report.get("sweep", ())}
    if columns or points:
        yield _result_rows(columns | points)
    if columns:
        kinds = next(iter(columns.values()))["kinds"]
        header = ["accuracy by kind", *(name.rpartition("threshold ")[2] for name in columns)]
        yield header, [[kind, *(f"{entry['kinds'][kind]:.3f}" for entry in columns.values())] for kind in kinds]
    if ways := report.get("lossless"):
        yield _lossless_rows(ways, report["prompts"])
    if found := report.get("retrieval"):
        named = {f"{mode}, {way.replace('_', '-')}": scores for mode in found for way, scores in found[mode].items()}
        header = ["docstring finds body", "mean reciprocal rank", "recall at 1", "recall at 10"]
        yield header, [[name, *(f"{score:.3f}" for score in scores.values())] for name, scores in named.items()]
    if facts := _fact_rows(report):
        yield ["measure", "value"], facts


def _result_rows(named: dict[str, dict]) -> Rows:
    """The AR model, then the converted one at each threshold, with what is kept and gained."""
    ar, found = named.get("AR"), list(named.values())
    columns = {"decoding": list(named), "accuracy": [f"{entry['accuracy']:.3f}" for entry in found]}
    if ar is not None:
        share = lambda entry: f"{100 * entry['accuracy'] / ar['accuracy']:.1f} %" if ar["accuracy"] else "-"  # noqa: E731
        columns["of AR"] = [share(entry) for entry in found]
    if all("tokens_per_second" in entry for entry in found):
        columns["tokens/forward"] = [f"{entry['tokens_per_forward']:.2f}" for entry in found]
        columns["tokens/s"] = [f"{entry['tokens_per_second']:.0f}" for entry in found]
        if ar is not None:
            columns["speed-up"] = [f"{entry['tokens_per_second'] / ar['tokens_per_second']:.2f}x" for entry in found]
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def _lossless_rows(ways: dict[str, dict], prompts: int) -> Rows:
    """Ways of decoding that give the same text, beside AR."""
    baseline, rows = ways["AR"]["tokens_per_second"], []
    for name, entry in ways.items():
        speed, forward = entry["tokens_per_second"], f"{entry['tokens_per_forward']:.2f}"
        counts = entry["forwards_by_tokens"]
        several = " ".join(f"{sum(counts[least:]) / sum(counts):.2f}" for least in range(2, len(counts))) or "-"
        same = f"{entry['same_text']} of {prompts}"
        rows.append([name, same, forward, several, f"{speed:.1f}", f"{speed / baseline:.2f}x"])
    return ["decoding", "same text as AR", "tokens/forward", "of which 2+ 3+ ...", "tokens/s", "speed-up"], rows


def _fact_rows(report: Report) -> list[list[str]]:
    """Held-out loss, weight drift, seconds."""
    names = {"ar": "held-out loss, AR", "diffusion": "held-out bound, converted"}  # by whatever mode it decodes
    losses = report.get("heldout_loss", {}).items()
    rows = [[f"{names[side]} (nats/token)", f"{loss:.3f}"] for side, loss in losses]
    data = report.get("heldout_data", {}).items()
    rows += [[f"held-out data, {name.replace('_', ' ')}", f"{count:,}"] for name, count in data]
    for group, drift in report.get("weight_drift", {}).items():
        mean = sum(drift["relative"]) / len(drift["relative"])
        rows.append([f"weight drift, {group} (mean over layers)", f"{mean:.3f}"])
    drafter = report.get("drafter", {}).items()
    rows += [[f"drafter, {name.replace('_', ' ')}", f"{value:,.6g}"] for name, value in drafter]
    if "seconds_to_first_token" in report:
        rows.append(["seconds to the first token", f"{report['seconds_to_first_token']:.1f}"])
    rows += [[f"seconds, {stage}", f"{seconds:.0f}"] for stage, seconds in report.get("stage_seconds", {}).items()]
    if "seconds" in report:
        rows.append(["seconds, all stages", f"{report['seconds']:.0f}"])
    return rows


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """The same in Markdown, each row ended by a newline."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    escaped = lambda row: (cell.replace("|", "\\|") for cell in row)  # noqa: E731
    return "".join(f"| {' | '.join(escaped(row))} |\n" for row in (header, rule, *rows))
