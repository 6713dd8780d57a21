"""The page of a study, docs/studies/NAME.md, from its results.json alone: no training, no model."""

from collections.abc import Sequence
from typing import Any

from edlm_jax.decoding.modes import options_of
from edlm_jax.reports.report import Rows, markdown_table
from edlm_jax.studies.results import PLACE, Results, before, by_place

_SHOWN = {"step": "step {}", "mode": "{}", "block_length": "block {}", "threshold": "threshold {:g}"}
_THRESHOLD = PLACE.index("threshold")
_WIDE = 8  # columns that a terminal and a page have room for
_MEANING = {  # of a measure whose name holds the word
    "drift": "Drift is the norm of the change over that of the AR weights, mean over layers.",
    "loss": "Losses are held-out nats per token, of diffusion a bound.",
    "retrieval": "Retrieval is a mean reciprocal rank.",
    "bytes": "Bytes are those of the training state and of the step's planned peak.",
}


def accuracy_rows(results: Results) -> Rows:
    """Arms down, places across (or the other way, `_upright`): accuracy, its standard error, tokens per forward."""
    columns = places(results)
    header = ["arm", "seeds", *(place_name(place, columns) for place in columns)]
    rows = [[before(results), "", *([_value(results["ar"]["accuracy"])] * len(columns))]]
    for arm in results["arms"]:
        points = by_place(arm["points"])
        cells = [_accuracy_at_speed(*points[place]) if place in points else "" for place in columns]
        rows.append([arm["arm"], str(len(arm["seeds"])), *cells])
    return _upright(header, rows)


def measure_rows(results: Results) -> Rows:
    """Arms down, measures across (or the other way, `_upright`), at each step that was measured."""
    found = [measures for arm in results["arms"] for measures in arm["measures"]]
    columns = list(dict.fromkeys((measures["step"], name) for measures in found for name in measures if name != "step"))
    header = ["measure", *(_measure_name(step, name) for step, name in columns)]
    ar = results["ar"]
    rows = [[before(results), *(_value(ar[name], name) if name in ar else "" for _, name in columns)]]
    for arm in results["arms"]:
        of_step = {measures["step"]: measures for measures in arm["measures"]}
        values = [(of_step.get(step, {}).get(name), name) for step, name in columns]
        rows.append([arm["arm"], *("" if value is None else _statistic(value, name) for value, name in values)])
    return _upright(header, rows)


def settled_rows(results: Results) -> Rows:
    """Arms down, modes that draft across with the number of tokens: the share of forwards that settle that many."""
    drafts = [place for place in places(results) if "drafts" in options_of(place[PLACE.index("mode")])]
    points = [by_place(arm["points"]).items() for arm in results["arms"]]
    settled = [{place: point.get("settled", []) for place, (point,) in of_arm} for of_arm in points]
    columns = [(p, n) for p in drafts for n in range(2, 1 + max(len(of_arm.get(p, [])) for of_arm in settled))]
    header = ["arm", *(f"{place_name(place, drafts)}, {count} or more" for place, count in columns)]
    rows = []
    for arm, of_arm in zip(results["arms"], settled, strict=True):
        found = [of_arm.get(place, [])[count - 1 :] for place, count in columns]
        rows.append([arm["arm"], *(_statistic(shares[0]) if shares else "" for shares in found)])
    return header, rows


def page(results: Results) -> str:
    """The whole page in Markdown."""
    name, hardware, jax_version = results["study"], results["hardware"], results["versions"]["jax"]
    quick = "a quick form (one seed, two steps: no result), " if results["quick"] else ""
    minutes = sum(cell["seconds"] for cell in results["cells"]) / 60
    cells = f"{results['finished']} of {results['cells_in_all']} cells in {minutes:.0f} minutes"
    devices = f"{len(hardware['devices'])} x {hardware['devices'][0]}, {hardware['processor']}"
    cores = f"{hardware['cpu_cores']} core{'s' * (hardware['cpu_cores'] != 1)}"
    parts = [_head(name, results["doc"]), f"Run: {quick}{cells}; {devices}, {cores}; jax {jax_version}.\n"]
    exact = all("kind" in task for task in results["config"]["evaluation"]["tasks"])  # a source of right responses
    right = "Exact match on held-out tasks" if exact else "Held-out tasks solved"
    caption = f"{right}, mean ± standard error over seeds; after @, tokens per forward.\n"
    parts += [caption, markdown_table(*accuracy_rows(results)), f"![{name}]({name}.png)\n"]
    names = {name for arm in results["arms"] for measures in arm["measures"] for name in measures}
    meanings = [text for word, text in _MEANING.items() if any(word in name for name in names)]
    parts += [" ".join(meanings) + "\n", markdown_table(*measure_rows(results))]
    header, rows = settled_rows(results)
    if header[1:]:
        parts += ["Share of forwards that settle so many tokens or more.\n", markdown_table(header, rows)]
    return "\n".join(parts)


def empty_page(name: str, doc: str) -> str:
    """The page of a study that was never run."""
    return "\n".join([_head(name, doc), "Not yet run.\n"])


def places(results: Results) -> list[tuple]:
    """Every (step, mode, block length, threshold) of any arm, in the order of measurement; None: each arm's own."""
    return list(by_place(point for arm in results["arms"] for point in arm["points"]))


def place_name(place: tuple, columns: Sequence[tuple]) -> str:
    """Its coordinates, as far as they tell columns apart; of the only one its threshold or mode."""
    varying = [i for i in range(len(PLACE)) if len({column[i] for column in columns}) > 1]
    parts = [_SHOWN[PLACE[i]].format(place[i]) for i in varying or (_THRESHOLD,) if place[i] is not None]
    return ", ".join(parts) or place[PLACE.index("mode")]


def _upright(header: list[str], rows: list[list[str]]) -> Rows:
    """A table that is too wide stands on its side, if it is shorter than wide."""
    if len(header) <= max(_WIDE, len(rows) + 1):
        return header, rows
    first, *others = zip(header, *rows, strict=True)
    return list(first), [list(row) for row in others]


def _accuracy_at_speed(point: dict[str, Any]) -> str:
    return f"{_statistic(point['accuracy'])} @ {point['tokens_per_forward']['mean']:.2f}"


def _statistic(value: dict[str, float | None], name: str = "") -> str:
    error = value["standard_error"]
    return _value(value["mean"], name) + ("" if error is None else f" ± {_value(error, name)}")


def _value(value: float, name: str = "") -> str:
    return f"{value / 2**20:.1f}" if name.endswith("_bytes") else f"{value:.3f}"


def _measure_name(step: int | None, name: str) -> str:
    words = name.removesuffix("_bytes").replace("_", " ") + (", MiB" if name.endswith("_bytes") else "")
    return words if step is None else f"step {step}, {words}"


def _head(name: str, doc: str) -> str:
    title, _, text = doc.strip().partition("\n")
    return f"# {name.replace('_', ' ')}: {title}\n{text}\n"
