"""Stages of a long job that is run again after an interruption: what is finished is not repeated."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edlm_jax.files import read_json, write_whole

Work = Callable[[], Any]


class Stages:
    """Named stages, their results (JSON) and seconds in one file of the work directory.

    Another config than the file's means other results: all stages run again. A stage that resumes by itself (training)
    keeps the seconds it has already taken. A stage that is `given` something else than before runs again, with all
    behind it, from nothing.
    """

    def __init__(self, path: Path, config: str, names: tuple[str, ...]):
        self.path, self.names = path, names
        record = read_json(path) if path.exists() else {"config": config, "stages": {}}
        if record["config"] != config:
            left = {name: {"seconds": stage["seconds"], "done": False} for name, stage in record["stages"].items()}
            record = {"config": config, "stages": left}
        self._record: dict[str, Any] = record

    @property
    def seconds(self) -> dict[str, float]:
        """What each stage took."""
        stages = self._record["stages"]
        return {name: stages[name]["seconds"] for name in self.names if name in stages}

    def run(self, name: str, work: Work, resumes: bool = False, given: Any = None, clear: Work | None = None) -> Any:
        """The stage's result: from the file if it is finished, else by doing the work.

        Args:
          given: what this stage and those behind it depend on, beside the config (JSON).
          clear: removes what they left when something else was given; not what this stage itself left half done.
        """
        stages, index = self._record["stages"], self.names.index(name)
        if stages.get(name, {}).get("given") != given:
            for outdated in self.names[index:]:
                stages.pop(outdated, None)
        if clear and name not in stages:
            clear()
        stage = stages.get(name, {"seconds": 0.0, "done": False})
        label = f"[{index + 1}/{len(self.names)}] {name}"
        if stage["done"]:
            print(f"{label}: done before, {stage['seconds']:.1f} s", file=sys.stderr)
            return stage["result"]
        print(f"{label} ...", file=sys.stderr, flush=True)
        before, start = stage["seconds"] if resumes else 0.0, time.perf_counter()
        stage = {"seconds": before, "done": False, "given": given}
        self._save(name, stage)  # whatever ends this process, nothing half written counts as finished
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
