"""Stages of a long job that is run again after an interruption: what is finished is not repeated."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edlm_jax.files import read_json, write_whole


class Stages:
    """Named stages, their results (JSON) and seconds in one file of the work directory.

    Another config than the file's means other results: all stages run again. A stage that resumes by itself (training)
    keeps the seconds it has already taken.
    """

    def __init__(self, path: Path, config: str, names: tuple[str, ...]):
        self.path, self.names = path, names
        self._record: dict[str, Any] = {"config": config, "stages": {}}
        if path.exists():
            record = read_json(path)
            same = record["config"] == config
            self._record["stages"] = {
                name: stage if same else {"seconds": stage["seconds"], "done": False}
                for name, stage in record["stages"].items()
            }

    @property
    def seconds(self) -> dict[str, float]:
        """What each stage took."""
        return {name: stage["seconds"] for name, stage in self._record["stages"].items()}

    def run(self, name: str, work: Callable[[], Any], resumes: bool = False) -> Any:
        """The stage's result: from the file if it is finished, else by doing the work."""
        stage = self._record["stages"].get(name, {"seconds": 0.0, "done": False})
        label = f"[{self.names.index(name) + 1}/{len(self.names)}] {name}"
        if stage["done"]:
            print(f"{label}: done before, {stage['seconds']:.1f} s", file=sys.stderr)
            return stage["result"]
        print(f"{label} ...", file=sys.stderr, flush=True)
        before, start = stage["seconds"] if resumes else 0.0, time.perf_counter()
        stage = {"seconds": before, "done": False}
        try:
            stage["result"] = work()
            stage["done"] = True
        finally:
            stage["seconds"] = before + time.perf_counter() - start
            self._save(name, stage)
        print(f"{label}: {stage['seconds']:.1f} s", file=sys.stderr)
        return stage["result"]

    def _save(self, name: str, stage: dict[str, Any]) -> None:
        self._record["stages"][name] = stage
        if self.path.parent.is_dir():  # a stage that refuses its input leaves no work directory behind
            write_whole(self.path, json.dumps(self._record, indent=1))
