"""Train and measure every cell of a study: the arms that its config file adds, times its seeds.

The work directory gets cells/, results.json, NAME.md and NAME.png. Run it again with the same --workdir and finished
cells are not repeated; with --cells several machines share one study. --report writes the page again from a
results.json alone, without training:

  edlm study --config=configs/studies/masking.py --workdir=runs/masking
  edlm study --config=configs/studies/masking.py --report=docs/studies      reads masking.json, if it is there"""

import argparse
import sys
from pathlib import Path
from typing import Any

from edlm_jax.commands.arguments import add_shared
from edlm_jax.commands.config import load_study
from edlm_jax.errors import InputError
from edlm_jax.files import read_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_shared(parser, "config")
    parser.epilog += "\nOf a study itself: --config.quick=True --config.seeds=(0,1); of its runs: --config.base.steps=9"
    parser.add_argument("--workdir", metavar="DIR", help="where the study keeps its files")
    parser.add_argument("--cells", default="", metavar="A:B", help="only these cells, counted from 0, B left out")
    parser.add_argument("--report", metavar="DIR", help="write DIR/NAME.md and NAME.png from DIR/NAME.json, and stop")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run the cells, or write the page; returns the results."""
    name, doc, config, sweep = load_study(args.config, args.overrides)
    if bool(args.workdir) == bool(args.report):
        raise InputError("give --workdir=DIR to run the study, or --report=DIR to write its page")
    if args.report:
        return _report(Path(args.report), name, doc)
    from edlm_jax.studies.cells import cell_range, expand
    from edlm_jax.studies.run import Study

    plan = expand(config, sweep)
    wanted = cell_range(args.cells, plan.cells)
    return _run(Study(plan, Path(args.workdir)), name, doc, wanted)


def show(results: dict[str, Any], args: argparse.Namespace | None, stderr: bool = False) -> None:
    """Print the table."""
    from edlm_jax.reports.report import print_tables
    from edlm_jax.studies.page import accuracy_rows

    if results["arms"]:
        print_tables([accuracy_rows(results)], stderr)


def _run(study, name: str, doc: str, wanted: range) -> dict[str, Any]:
    from edlm_jax.reports.progress import Progress
    from edlm_jax.reports.report import write_report

    study.keep_programs()
    todo = [index for index in wanted if study.finished(index) is None]
    baseline, fresh = study.baseline(), 0
    with Progress(len(todo), "cells", live=False) as progress:
        for cell, result in study.run(wanted):
            if result is None:
                print(f"{cell.name}: done before", file=sys.stderr)
                continue
            fresh += 1
            programs = f"{result['compiled']['all']} programs compiled, {result['compiled']['reused']} reused"
            progress.done(fresh, f"{cell.name} in {result['seconds']:.0f} s, {programs}")
            show(study.results(name, doc, baseline), None, stderr=True)
    results = study.results(name, doc, baseline)
    write_report(results, study.workdir / "results.json")
    _write_page(study.workdir, name, results)
    print(f"study: {study.workdir / 'results.json'}, {name}.md, {name}.png", file=sys.stderr)
    return results


def _report(directory: Path, name: str, doc: str) -> dict[str, Any]:
    """The page from its results; of a study without any, one that says so."""
    from edlm_jax.studies.page import empty_page

    if not directory.is_dir():
        raise InputError(f"--report={directory} is not a directory")
    path = directory / f"{name}.json"
    if not path.exists():
        (directory / f"{name}.md").write_text(empty_page(name, doc), encoding="utf-8")
        return {"study": name, "arms": []}
    results = read_json(path)
    if "arms" not in results:
        raise InputError(f"{path} is not the results.json of a study")
    results["doc"] = doc  # the file may have learned since what the run found
    _write_page(directory, name, results)
    return results


def _write_page(directory: Path, name: str, results: dict[str, Any]) -> None:
    from edlm_jax.studies.page import page
    from edlm_jax.studies.plot import plot_study

    (directory / f"{name}.md").write_text(page(results), encoding="utf-8")
    plot_study(results, directory / f"{name}.png")
