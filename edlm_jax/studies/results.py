"""results.json: the measurements of all cells, and of each arm the mean and its standard error over seeds."""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

PLACE = ("step", "mode", "block_length", "threshold")  # where an arm is measured
Results = dict[str, Any]


def summarise(arm: str, runs: Sequence[dict]) -> dict[str, Any]:
    """One arm over its seeds: its points, and at each step the mean of every measure that is a number."""
    points, measures = ([found for run in runs for found in run[name]] for name in ("points", "measures"))
    return {
        "arm": arm,
        "changes": runs[0]["changes"],
        "seeds": [run["seed"] for run in runs],
        "points": [
            dict(zip(PLACE, place, strict=True))
            | {name: mean_and_error([p[name] for p in alike]) for name in ("accuracy", "tokens_per_forward")}
            | {"settled": _settled([p["forwards_by_tokens"] for p in alike if "forwards_by_tokens" in p])}
            for place, alike in by_place(points).items()
        ],
        "measures": [
            {"step": step}
            | {
                name: mean_and_error([measures[name] for measures in alike])
                for name, value in alike[0].items()
                if name != "step" and isinstance(value, int | float)
            }
            for (step,), alike in by_place(measures, ("step",)).items()
        ],
    }


def by_place(found: Iterable[dict], names: Sequence[str] = PLACE) -> dict[tuple, list[dict]]:
    """What was measured at each place, in the order of measurement; None in a place: each arm's own."""
    places: dict[tuple, list[dict]] = {}
    for entry in found:
        places.setdefault(tuple(entry[name] for name in names), []).append(entry)
    return places


def _settled(forwards_by_tokens: Sequence[Sequence[int]]) -> list[dict[str, float | None]]:
    """The share of forwards that settled at least one token, two, ..."""
    most = max(map(len, forwards_by_tokens), default=0)
    shares = ([sum(counts[least:]) / sum(counts) for counts in forwards_by_tokens] for least in range(1, most))
    return [mean_and_error(of_runs) for of_runs in shares]


def mean_and_error(values: Sequence[float]) -> dict[str, float | None]:
    """The mean and its standard error, None for a single value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "standard_error": error}


def before(results: Results) -> str:
    """What the model is that all arms start from."""
    return results["ar"].get("name", "AR, unconverted")
