"""The study engine on a tiny model: cells, restart, sharing, results; every committed study in its quick form."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache
from matplotlib.colors import to_rgb

from edlm_jax.commands.config import load_study
from edlm_jax.commands.main import main
from edlm_jax.data.reach import generate_example
from edlm_jax.decoding.generation import forwards_by_tokens
from edlm_jax.decoding.modes import Diffusion
from edlm_jax.errors import InputError
from edlm_jax.models import Conversion, ModelSpec, Transformer
from edlm_jax.pretrained import load_pretrained, save_pretrained
from edlm_jax.studies import run as study_run
from edlm_jax.studies.cells import cell_range, expand
from edlm_jax.studies.page import accuracy_rows, measure_rows, page, place_name, places, settled_rows
from edlm_jax.studies.plot import curves, plot_study
from edlm_jax.studies.results import before, mean_and_error, summarise
from tests.conftest import TINY

ROOT = Path(__file__).parents[2]
STUDIES = sorted(path.stem for path in (ROOT / "configs" / "studies").glob("*.py"))
CELL = {"lora": 1, "joint": 3, "components": 6, "actions": 1}  # whose quick form is tested, where it is not the first
MEASURE = {  # of the page, beside the answers
    "actions": "Held-out tasks solved",
    "lora": "gradients, MiB",
    "joint": "ar loss tasks",
    "generalisation": "diffusion loss stdlib",
    "embedding": "retrieval block causal",
}
STUDY = '''"""A title.

What it is about.
"""

import runpy

from edlm_jax.studies.cells import study_config


def get_config():
    c = study_config(runpy.run_path({config!r})["get_config"]())
    c.seeds = (0, 5)
    c.base.data.eval_sources = ()
    return c


def sweep(add):
    add("low rate", {{"optimizer.learning_rate": 1e-3}})
    add("high rate, other noise", {{"optimizer.learning_rate": 1e-2, "objective.half_life": 0.3}})
'''


@pytest.fixture
def study_file(tiny_config, tmp_path) -> str:
    path = tmp_path / "rates.py"
    path.write_text(STUDY.format(config=tiny_config))
    return str(path)


@pytest.fixture
def own_cache(tmp_path):
    """As in a study on a machine of its own: nothing is compiled yet, and the cache keeps small programs, too."""
    own = dict(jax_compilation_cache_dir=str(tmp_path / "compiled"), jax_persistent_cache_min_compile_time_secs=0.0)
    shared = {name: getattr(jax.config, name) for name in own}
    for settings in (own, shared):
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if settings is own:
            yield


def test_cells_that_differ_in_numbers_compile_once(own_cache, study_file, tmp_path, capsys):
    argv = ["study", f"--config={study_file}", f"--workdir={tmp_path / 'runs'}", "--config.seeds=(3,)", "--json"]
    assert main([*argv, "--config.base.evaluation.thresholds=(0.0,)"]) == 0
    captured = capsys.readouterr()
    results = json.loads(captured.out)
    first, second = results["cells"]
    assert first["compiled"]["training"] > 0 == second["compiled"]["training"] == second["compiled"]["all"]
    assert second["compiled"]["reused"] > 0
    assert "[1/2] cells: low-rate-seed3 in" in captured.err and "0 programs compiled" in captured.err
    low, high = (cell["measures"][0]["drift_ffn"] for cell in results["cells"])
    assert high > 2 * low > 0  # ten times the rate
    assert results["ar"]["tokens_per_forward"] == 1 < second["points"][0]["tokens_per_forward"]
    assert (tmp_path / "runs" / "rates.png").read_bytes().startswith(b"\x89PNG")


def stand_in(monkeypatch):
    """Cells that cost nothing: accuracy is a tenth of the seed plus one; returns the names of those that ran."""
    ran = []

    def run_cell(study, cell):
        ran.append(cell.name)
        (study.workdir / "cells" / cell.name).mkdir(parents=True)
        points = [point(threshold, (cell.seed + 1) / 10, 2.0) for threshold in cell.run.evaluation.thresholds]
        compiled = dict(training=0, all=0, reused=0)
        facts = dict(arm=cell.arm, seed=cell.seed, changes=dict(cell.changes), points=points, training={}, seconds=1.0)
        facts |= dict(measures=[DRIFT])
        return facts | dict(compiled=compiled, config=study._measured_config(cell.run))

    monkeypatch.setattr(study_run.Study, "_run_cell", run_cell)
    monkeypatch.setattr(study_run.Study, "baseline", lambda study: dict(accuracy=0.9, tokens_per_forward=1.0))
    return ran


def test_machines_share_cells_and_nothing_runs_twice(study_file, tmp_path, capsys, monkeypatch):
    ran, workdir, pages = stand_in(monkeypatch), tmp_path / "runs" / "rates", tmp_path / "pages"
    argv = ["study", f"--config={study_file}", f"--workdir={workdir}"]
    assert main([*argv, "--cells=2:4"]) == 0  # one machine
    assert "2 of 4 cells" in (workdir / "rates.md").read_text()
    assert main([*argv, "--cells=1"]) == 0  # another one
    assert "high rate, other noise" in capsys.readouterr().out
    assert main([*argv, "--json"]) == 0  # the rest
    assert ran == ["high-rate-other-noise-seed0", "high-rate-other-noise-seed5", "low-rate-seed5", "low-rate-seed0"]
    captured = capsys.readouterr()
    assert "[1/1] cells: low-rate-seed0 in 1 s" in captured.err and "low-rate-seed5: done before" in captured.err
    results = json.loads(captured.out)
    assert (results["finished"], results["cells_in_all"]) == (4, 4)
    assert [arm["arm"] for arm in results["arms"]] == ["low rate", "high rate, other noise"]
    for arm in results["arms"]:
        assert arm["seeds"] == [0, 5] and [entry["threshold"] for entry in arm["points"]] == [1.0, 0.0]
        assert arm["points"][0]["accuracy"] == dict(mean=pytest.approx(0.35), standard_error=pytest.approx(0.25))

    pages.mkdir()
    shutil.copy(workdir / "results.json", pages / "rates.json")
    assert main(["study", f"--config={study_file}", f"--report={pages}"]) == 0
    assert (pages / "rates.md").read_text() == (workdir / "rates.md").read_text()
    assert main([*argv, "--config.base.optimizer.beta2=0.5"]) == 2
    assert "another config" in capsys.readouterr().err and len(ran) == 4


def test_a_mode_without_blocks_has_a_point_at_every_block_length(study_file, tmp_path, monkeypatch):
    name, doc, config, sweep = load_study(str(study_file))
    config.eval_block_lengths, config.eval_modes = (2, 4), ("ar", "diffusion")
    config.base.evaluation.thresholds = (0.9, 0.5)
    study = study_run.Study(expand(config, sweep), tmp_path)
    modes = study._modes(study.cells[0])
    own = [(mode.name, getattr(mode, "block_length", None), getattr(mode, "threshold", None)) for mode, _ in modes]
    blocks = [("diffusion", length, threshold) for length in (2, 4) for threshold in (0.9, 0.5)]
    assert own == [("ar", None, None)] * 2 + blocks
    assert [length for _, length in modes] == [2, 4] + [2, 2, 4, 4]


def test_an_ar_model_measured_otherwise_is_not_taken_for_the_baseline(study_file, tmp_path, monkeypatch):
    name, doc, config, sweep = load_study(str(study_file))
    monkeypatch.setattr(study_run.Study, "_score", lambda study, way: dict(accuracy=0.5))
    study = study_run.Study(expand(config, sweep), tmp_path)
    assert study.baseline() == study.baseline() == dict(accuracy=0.5)
    config.base.evaluation.batch_size += 1
    with pytest.raises(InputError, match="ar.json was made under another config"):
        study_run.Study(expand(config, sweep), tmp_path).baseline()


def test_a_converted_model_is_its_own_baseline(study_file, tiny_ar_dir, tmp_path, monkeypatch):
    model = load_pretrained(tiny_ar_dir, dtype="float32")
    model.spec = dataclasses.replace(model.spec, conversion=Conversion(5, 4))
    save_pretrained(model, tmp_path / "converted")
    _, _, config, sweep = load_study(str(study_file))
    config.base.init.path = str(tmp_path / "converted")
    asked = []
    monkeypatch.setattr(study_run.Study, "_score", lambda study, way: asked.append(way.mode) or dict(accuracy=0.5))
    found = study_run.Study(expand(config, sweep), tmp_path / "runs").baseline()
    assert asked == [Diffusion()] and before(dict(ar=found)) == "converted before"


def test_an_arm_drifts_from_the_model_that_it_began_with(study_file, tiny_tokenizer_dir, tmp_path, monkeypatch):
    """It may be of another size than the study's."""
    spec = ModelSpec.from_hf(TINY | dict(hidden_size=64), source=str(tiny_tokenizer_dir))
    save_pretrained(Transformer(spec, rngs=nnx.Rngs(0)), tmp_path / "wide")
    _, _, config, _ = load_study(str(study_file))
    config.quick = True
    said = dict(accuracy=0.5, tokens_per_forward=1.0, forwards_by_tokens=[0, 1])
    monkeypatch.setattr(study_run.Study, "_score", lambda study, way: said)
    plan = expand(config, lambda add: add("wide", {"init.path": str(tmp_path / "wide")}))
    ((_, result),) = study_run.Study(plan, tmp_path / "runs").run([0])
    assert 0 < result["measures"][0]["drift_ffn"] < 1


@pytest.fixture
def made_before(tmp_path, monkeypatch):
    """What other commands have left where studies look for it: a first stage's responses, and held-out targets."""
    held_out = [json.dumps(generate_example(0, index, "test")) for index in range(4)]
    for name, lines in {"quickstart/own": ['{"accepted_at": [1, 1, 2]}'], "actions/test": held_out}.items():
        path = tmp_path / "runs" / f"{name}.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("made_before")
@pytest.mark.parametrize("name", STUDIES)
def test_every_cell_of_a_committed_study_can_start(name):
    _, doc, config, sweep = load_study(str(ROOT / "configs" / "studies" / f"{name}.py"))
    cells = expand(config, sweep).cells
    assert all(cell.run.start.seed == cell.seed for cell in cells)
    assert len(config.seeds) >= 3 and len(cells) % len(config.seeds) == 0
    assert "arXiv 2512.14067" in doc and f"configs/studies/{name}.py" in doc
    assert f"{len(cells)} cells" in doc
    config.quick = True
    quick = expand(config, sweep).cells
    assert [cell.arm for cell in quick] == list(dict.fromkeys(cell.arm for cell in cells))
    assert {cell.seed for cell in quick} == {0} and {cell.run.steps for cell in quick} == {2}


@pytest.mark.usefixtures("made_before")
@pytest.mark.parametrize("name", STUDIES)
def test_the_quick_form_of_every_study_runs(name, tiny_ar_dir, tmp_path, capsys):
    argv = ["study", f"--config={ROOT / 'configs' / 'studies' / f'{name}.py'}", f"--workdir={tmp_path}"]
    sources = "({'kind': 'tasks', 'kinds': ('sort',)},)"
    tiny = dict(init_path=tiny_ar_dir, data_tokenizer="", data_eval_sources=(), data_length=64, data_sources=sources)
    overrides = [f"--config.base.{name.replace('_', '.', 1)}={value}" for name, value in tiny.items()]
    assert main([*argv, "--config.quick=True", f"--cells={CELL.get(name, 0)}", *overrides]) == 0
    text = (tmp_path / f"{name}.md").read_text()
    assert "a quick form (one seed, two steps: no result), 1 of" in text and "| AR, unconverted |" in text
    assert (tmp_path / f"{name}.png").exists() and MEASURE.get(name, "drift ffn") in text


@pytest.mark.parametrize("name", STUDIES)
def test_the_committed_page_is_what_its_results_say(name, tmp_path):
    pages, study = ROOT / "docs" / "studies", ROOT / "configs" / "studies" / f"{name}.py"
    if (pages / f"{name}.json").exists():
        shutil.copy(pages / f"{name}.json", tmp_path)
    assert main(["study", f"--config={study}", f"--report={tmp_path}"]) == 0
    assert (tmp_path / f"{name}.md").read_text() == (pages / f"{name}.md").read_text()


DRIFT = dict(step=None, drift_attention=0.1, drift_ffn=0.2, drift={"ffn": {"relative": [0.2]}})


def point(threshold, accuracy, forward, **place):
    where = dict(step=None, mode="diffusion", block_length=None, threshold=threshold) | place
    return where | dict(accuracy=accuracy, tokens_per_forward=forward)


def results_of(x, arms):
    """{arm: [points of a seed, ...]} -> results."""
    runs = {
        arm: [
            dict(seed=seed, points=points, measures=[DRIFT | dict(peak_bytes=2**24 * seed)], changes={"rate": len(arm)})
            for seed, points in enumerate(seeds)
        ]
        for arm, seeds in arms.items()
    }
    machine = dict(hardware=dict(devices=["cpu"], processor="abacus", cpu_cores=1), versions=dict(jax="0"))
    counts = dict(finished=3, cells_in_all=4, quick=False, cells=[dict(seconds=100.0 * i) for i in range(3)])
    summaries = [summarise(arm, seeds) for arm, seeds in runs.items()]
    ar = dict(accuracy=0.9, drift_ffn=0.05)
    config = dict(evaluation=dict(tasks=[dict(kind="tasks")]))
    return dict(study="some", doc="T\n\nText.", x=x, ar=ar, arms=summaries, config=config, **counts, **machine)


def test_tables_have_means_and_standard_errors_over_seeds():
    seeds = [[point(1.0, a, 1.0), point(0.5, a / 2, f)] for a, f in ((0.8, 2.0), (0.6, 3.0), (0.7, 4.0))]
    results = results_of("tokens_per_forward", {"one": seeds, "lonely": seeds[:1]})
    header, rows = accuracy_rows(results)
    assert header == ["arm", "seeds", "threshold 1", "threshold 0.5"]
    error = math.sqrt((0.1**2 + 0.1**2) / 2 / 3)
    assert rows[1] == ["one", "3", f"0.700 ± {error:.3f} @ 1.00", f"0.350 ± {error / 2:.3f} @ 3.00"]
    assert rows[2][2] == "0.800 @ 1.00"
    assert "| one | 3 | 0.700 ± 0.058 @ 1.00 |" in page(results) and "3 of 4 cells in 5 minutes" in page(results)
    assert "Drift is" in page(results) and "Bytes are" in page(results) and "Losses are" not in page(results)
    header, rows = measure_rows(results)
    assert header == ["measure", "drift attention", "drift ffn", "peak, MiB"]
    assert rows[0] == ["AR, unconverted", "", "0.050", ""]
    assert rows[1] == ["one", "0.100 ± 0.000", "0.200 ± 0.000", f"16.0 ± {16 / 3**0.5:.1f}"] and rows[2][0] == "lonely"
    assert mean_and_error([2.0]) == dict(mean=2.0, standard_error=None)


def test_a_table_wider_than_long_stands_on_its_side():
    seed = [point(threshold / 10, 0.5, threshold) for threshold in range(9)]
    header, rows = accuracy_rows(results_of("tokens_per_forward", {"one": [seed], "two": [seed]}))
    assert header == ["arm", "AR, unconverted", "one", "two"]
    assert rows[0] == ["seeds", "", "1", "1"]
    assert [row[0] for row in rows[1:]] == [f"threshold {threshold / 10:g}" for threshold in range(9)]
    assert rows[9][2] == "0.500 @ 8.00"


def test_measures_are_of_their_step():
    measured = lambda seed: [dict(step=step, drift=step + seed) for step in (2, 4)]  # noqa: E731
    runs = [dict(seed=seed, points=[], changes={}, measures=measured(seed)) for seed in (0, 2)]
    measures = summarise("one", runs)["measures"]
    assert [(found["step"], found["drift"]["mean"]) for found in measures] == [(2, 3.0), (4, 5.0)]


def test_curves_run_over_what_the_study_is_about():
    arms = {"a": [[point(1.0, 0.9, 1.0), point(0.5, 0.7, 3.0)]], "bb": [[point(1.0, 0.8, 1.0), point(0.5, 0.6, 2.0)]]}
    drawn = lambda x: {  # noqa: E731
        name: [(p["x"], p["accuracy"]["mean"]) for p in points] for name, points in curves(results_of(x, arms)).items()
    }
    assert drawn("tokens_per_forward") == {("a", ""): [(1.0, 0.9), (3.0, 0.7)], ("bb", ""): [(1.0, 0.8), (2.0, 0.6)]}
    by_threshold = {("", "threshold 1"): [(1, 0.9), (2, 0.8)], ("", "threshold 0.5"): [(1, 0.7), (2, 0.6)]}
    assert drawn("rate") == by_threshold
    arms = {"a": [[point(1.0, 0.5, 1.0, step=8), point(1.0, 0.2, 1.0, step=4)]]}
    assert drawn("step") == {("", ""): [(4, 0.2), (8, 0.5)]}
    arms = {"a": [[point(None, 0.7, 1.5, mode="ar")]]}
    assert accuracy_rows(results_of("tokens_per_forward", arms))[0] == ["arm", "seeds", "ar"]
    arms = {"a": [[point(1.0, 0.5, 1.0), point(None, 0.7, 1.5, mode="ar")]]}
    assert drawn("tokens_per_forward") == {("", "diffusion"): [(1.0, 0.5)], ("", "ar"): [(1.5, 0.7)]}
    assert [place_name(place, places(results_of("x", arms))) for place in places(results_of("x", arms))] == [
        "diffusion, threshold 1", "ar"
    ]  # fmt: skip


@pytest.mark.parametrize("count", [8, 12, 18])
def test_no_arm_has_the_colour_that_explains_the_modes(count, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: drawn.append(figure))
    seed = [point(1.0, 0.5, 1.0), point(None, 0.7, 1.5, mode="ar")]
    arms = [f"arm {number}" for number in range(count)]
    plot_study(results_of("tokens_per_forward", {arm: [seed] for arm in arms}), tmp_path / "some.png")
    colours = {line.get_label(): to_rgb(line.get_color()) for line in drawn[0].legends[0].get_lines()}
    of_modes = [colours[mode] for mode in ("diffusion", "ar")]
    of_arms = {colours[arm] for arm in arms}
    assert len(of_arms) == count
    assert min(np.abs(np.subtract(own, other)).max() for own in of_arms for other in of_modes) > 0.1


def test_the_page_says_how_far_drafts_were_right():
    accepted_at = [[1, 1, 1, 2, 2, 4], [1, 2, 2, 2, 2]]  # four forwards, of which one settled nothing, and two
    assert forwards_by_tokens(accepted_at, 6) == [1, 2, 1, 1, 1]
    assert forwards_by_tokens([[0, 1, 1, 1], [0]], 2) == [1, 0, 0, 1]  # a prefill that is no denoising forward
    drafted = lambda counts: point(None, 0.5, 1.0, mode="self_speculation") | {"forwards_by_tokens": counts}  # noqa: E731
    runs = [[drafted([1, 2, 1]), point(1.0, 0.5, 1.0)], [drafted([0, 0, 4]), point(1.0, 0.5, 1.0)]]
    header, rows = settled_rows(results_of("x", {"a": runs, "b": [[point(1.0, 0.5, 1.0)]]}))
    assert (header, rows) == (["arm", "self_speculation, 2 or more"], [["a", "0.625 ± 0.375"], ["b", ""]])


def test_what_no_study_can_be_is_refused(study_file, tiny_config, tmp_path, capsys):
    _, _, config, sweep = load_study(study_file)
    for change, reason in [
        (dict(seeds=()), "config.seeds"),
        (dict(seeds=(1, 1)), "config.seeds must differ"),
        (dict(seeds=("a",)), "config.seeds must be whole numbers"),
        (dict(eval_modes=("ar", "ar")), "config.eval_modes must differ"),
        (dict(eval_losses=(dict(path="a.jsonl"),)), "kind"),
        (dict(quick=True, base=dict(evaluation=dict(tasks=("sort",)))), "tasks are a tuple of dicts"),
        (dict(eval_block_lengths=(0,)), "eval_block_lengths must be positive"),
        (dict(eval_steps=(50,)), "stops at step 3, before 50"),
        (dict(eval_modes=("diffusion", "backwards")), "eval_modes are one or more of"),
        (dict(eval_losses=(dict(kind="tasks"), dict(kind="tasks", seed=1))), "must differ"),
        (dict(retrieval=-1), "config.retrieval must not be negative"),
        (dict(x="step"), "config.x=step needs config.eval_steps"),
        (dict(x="objective.half_life"), "'low rate' must change it to a number"),
    ]:
        with pytest.raises(InputError, match=reason):
            changed = config.copy_and_resolve_references()
            changed.update(change)
            expand(changed, sweep)
    for arms, reason in [
        ([("a", {}), ("a", {})], "adds 'a' twice"),
        ([("a!", {}), ("a?", {})], "one directory"),
        ([("a", {"objective.patern": "causal"})], "a field that there is not"),
        ([("a", {"objective.pattern": "causal"})], "trains an AR model"),
        ([("a", {"evaluation.thresholds": (0.9, 0.9)})], "thresholds must differ"),
        ([("a", {"evaluation.thresholds": (7,)})], "thresholds must lie in"),
        ([("a", {"evaluation.tasks": ()})], "all arms are asked what the base says"),
        ([("a", {"objective.block_length": 5})], "do not divide"),
    ]:
        with pytest.raises(InputError, match=reason):
            expand(config, lambda add, arms=arms: [add(*arm) for arm in arms])
    cells = expand(config, sweep).cells
    assert list(cell_range("1:3", cells)) == [1, 2] and list(cell_range("2:", cells)) == [2, 3]
    assert list(cell_range("3", cells)) == [3] and list(cell_range("", cells)) == [0, 1, 2, 3]
    for text in ("4", "2:1", "0:5", "x"):
        with pytest.raises(InputError, match="--cells"):
            cell_range(text, cells)
    assert main(["study", f"--config={tiny_config}", f"--workdir={tmp_path / 'w'}"]) == 2
    assert "not a study" in capsys.readouterr().err
    assert main(["study", f"--config={study_file}"]) == 2
    assert "--workdir" in capsys.readouterr().err and not (tmp_path / "w").exists()
