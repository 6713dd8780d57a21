"""The report's tables, files and figure."""

import json
from pathlib import Path

import pytest

from edlm_jax.reports.picture import plot_report
from edlm_jax.reports.progress import Progress
from edlm_jax.reports.report import (
    describe_machine,
    markdown_table,
    print_report,
    print_tables,
    read_losses,
    write_report,
)
from tests.benchmarks.plot_readme import plot_readme


def entry(accuracy, speed, forward=1.0, **more):
    kinds = {"sort": accuracy, "sums": accuracy}
    return dict(accuracy=accuracy, tokens_per_second=speed, tokens_per_forward=forward, kinds=kinds, **more)


REPORT = {
    "name": "some run",
    "ar": entry(0.8, 100.0),
    "diffusion": [entry(0.784, 90.0, 1.0, threshold=1.0), entry(0.6, 250.0, 3.21, threshold=0.9)],
    "heldout_loss": {"ar": 1.25, "diffusion": 1.5},
    "weight_drift": {
        group: {"relative": [0.1, 0.3], "cosine": [0.99, 0.95]} for group in ("attention", "ffn")
    },
    "seconds": 75.4,
    "stage_seconds": {"port": 0.4, "train": 75.0},
}  # fmt: skip


def test_a_wide_table_goes_on_below_and_breaks_no_number(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    header = ["the name of a mode, which is long", *(f"a recipe with {n} words" for n in range(7))]
    rows = [[f"row {r}", *(f"0.{r}{n} ± 0.003 @ 4.93" for n in range(7))] for r in range(2)]
    print_tables([(header, rows)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    for name, *numbers in rows:
        own = [line for line in lines if name in line]
        assert [cell.strip() for line in own for cell in line.strip("│").split("│")[1:]] == numbers


@pytest.mark.parametrize("columns", [1, 2, 4])
def test_names_fold_where_a_table_nearly_fits_and_numbers_do_not(columns, monkeypatch, capsys):
    """In no width between that of the least words and that of whole names."""
    header = ["arm", *(f"threshold 0.{n}" for n in range(columns))]
    rows = [["uniform per sequence", *(f"0.89{n} ± 0.007 @ 3.25" for n in range(columns))]]
    for width in range(40, 1 + 23 + 23 * columns + 2):
        monkeypatch.setenv("COLUMNS", f"{width}")
        print_tables([(header, rows)])
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines())) <= width
        assert all(number in out for number in rows[0][1:]), (width, out)


def test_names_with_brackets_and_bars_are_printed_as_they_are(monkeypatch, capsys):
    """As the arms of a study have: rich would read them as its markup."""
    table = ["kind [x]", "n"], [["rate [high] :fire:", "1"], ["[/b]", "2"], ["a|b", "3"]]
    print_tables([table])
    out = capsys.readouterr().out
    assert all(name in out for name in ("kind [x]", "rate [high] :fire:", "[/b]", "a|b"))
    assert markdown_table(*table).endswith("| [/b] | 2 |\n| a\\|b | 3 |\n")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress(2, "bench all") as progress:
        progress.done(1, "no file at [/tmp/x]")
        assert str(progress._bar.columns[-1].render(progress._bar.tasks[0])) == "bench all: no file at [/tmp/x]"


def test_markdown_tables_hold_what_was_kept_and_gained(capsys):
    print_report(REPORT, markdown=True)
    lines = capsys.readouterr().out.splitlines()
    assert "| decoding | accuracy | of AR | tokens/forward | tokens/s | speed-up |" in lines
    assert "| AR | 0.800 | 100.0 % | 1.00 | 100 | 1.00x |" in lines
    assert "| diffusion, threshold 0.9 | 0.600 | 75.0 % | 3.21 | 250 | 2.50x |" in lines
    assert "| accuracy by kind | AR | 1 | 0.9 |" in lines
    assert "| sums | 0.800 | 0.784 | 0.600 |" in lines
    assert "| held-out loss, AR (nats/token) | 1.250 |" in lines
    assert "| held-out bound, converted (nats/token) | 1.500 |" in lines
    assert "| weight drift, ffn (mean over layers) | 0.200 |" in lines
    assert "| seconds, all stages | 75 |" in lines


def test_a_report_without_a_baseline_or_of_losses_alone_prints_what_it_has(capsys):
    print_report({"diffusion": REPORT["diffusion"]}, markdown=True)
    out = capsys.readouterr().out
    assert "| diffusion, threshold 1 | 0.784 | 1.00 | 90 |" in out and "of AR" not in out
    print_report({"heldout_loss": {"ar": 2.0}})
    out = capsys.readouterr().out
    assert "2.000" in out and "decoding" not in out


def test_the_report_is_written_whole(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("an older one")
    write_report({**REPORT, **describe_machine()}, path)
    report = json.loads(path.read_text())
    assert report["ar"] == REPORT["ar"]
    assert report["versions"]["jax"] and report["hardware"]["cpu_cores"] >= 1
    assert list(tmp_path.iterdir()) == [path]


def test_the_figure_has_a_panel_for_every_question(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: drawn.append(figure))
    plot_report(REPORT, [(1, 3.0), (2, 2.0), (3, 1.5)], tmp_path / "report.png")
    panels = {panel.get_title(loc="left"): panel for panel in drawn[0].axes}
    speeds = [bar.get_height() for bar in panels["Speed at batch 1"].patches]
    assert speeds == [100.0, 90.0, 250.0]
    assert [bar.get_height() for bar in panels["Accuracy by kind of task"].patches] == [0.8] * 2 + [0.784] * 2 + [
        0.6
    ] * 2
    curve = panels["Training loss of the conversion"].lines[0]
    assert list(curve.get_xdata()) == [1, 2, 3] and list(curve.get_ydata()) == [3.0, 2.0, 1.5]
    points = [line.get_xydata().tolist() for line in panels["Accuracy against tokens per forward"].lines]
    assert [[3.21, 0.6]] in points and [[1.0, 0.8]] in points
    assert list(panels["Weight drift from the AR model"].lines[1].get_ydata()) == [0.1, 0.3]


def test_a_conversion_that_is_better_than_its_model_is_in_the_figure(tmp_path, monkeypatch):
    """As where the AR model was never trained on the tasks."""
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: drawn.append(figure))
    report = REPORT | dict(ar=entry(0.1, 100.0), diffusion=[entry(0.9, 90.0, 2.0, threshold=0.9)])
    plot_report(report, [(1, 3.0)], tmp_path / "report.png")
    (trade,) = [axes for axes in drawn[0].axes if "tokens per forward" in axes.get_title(loc="left")]
    low, high = trade.get_ylim()
    assert low < 0.1 < 0.9 < high


def test_losses_are_read_from_the_training_metrics(tmp_path):
    lines = [dict(step=1, loss=2.5), dict(step=1, eval_loss=9.0), dict(step=2, loss=None), dict(step=3, loss=1.5)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_losses(tmp_path / "metrics.jsonl") == [(1, 2.5), (3, 1.5)]


def test_the_readme_shows_committed_results(tmp_path):
    docs = Path(__file__).parents[2] / "docs"
    read = lambda name: json.loads((docs / name).read_text())  # noqa: E731
    quickstart, other, modes = read("quickstart.json"), read("quickstart_epyc.json"), read("studies/modes.json")
    plot_readme(quickstart, modes, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG") and (docs / "picture.png").is_file()
    readme = (docs.parent / "README.md").read_text()
    assert len(readme.splitlines()) <= 120
    for point in 1, 3:
        entry = quickstart["diffusion"][point]
        row = f"| {entry['accuracy']:.3f} | {entry['tokens_per_forward']:.2f} |"
        for report in quickstart, other:
            speed = report["diffusion"][point]["tokens_per_second"]
            row += f" {speed:.0f} | {speed / report['ar']['tokens_per_second']:.2f}x |"
        assert f"| diffusion, threshold {entry['threshold']:g} {row}" in readme
    for page in docs.glob("*.md"):
        assert len(page.read_text().splitlines()) <= 150, page
