"""What a conversion's curve says: the line and its errors by the textbook, and when it says nothing."""

import json
import math

import jax
import numpy as np
import pytest

from edlm_jax.training.config import default_config
from edlm_jax.training.run import Run
from edlm_jax.training.train import train
from tests.benchmarks.conversion import Checkpoints, fit, main
from tests.benchmarks.cost_table import RECIPES, SIZES, hours
from tests.seeds import fresh_rng


def test_a_fit_is_the_textbooks():
    rng = fresh_rng()
    tokens = np.geomspace(1e4, 1e6, 6)
    values = 6 - 0.3 * np.log(tokens) + rng.normal(0, 0.02, 6)
    found, x = fit(tokens, values, 0.5), np.log(tokens)
    design = np.stack([np.ones(6), x], 1)
    inverse = np.linalg.inv(design.T @ design)
    a, b = inverse @ design.T @ values
    covariance = inverse * ((values - a - b * x) ** 2).sum() / (6 - 2)
    log = (0.5 - a) / b
    error = math.sqrt(covariance[0, 0] + 2 * log * covariance[0, 1] + log**2 * covariance[1, 1]) / abs(b)
    expected = dict(a=a, b=b, a_error=covariance[0, 0] ** 0.5, b_error=covariance[1, 1] ** 0.5, target=0.5)
    expected |= dict(enough=math.exp(log), enough_from=math.exp(log - error), enough_to=math.exp(log + error))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_a_fit_that_says_nothing_says_so():
    tokens = [1e4, 2e4, 4e4, 8e4]
    assert fit(tokens, [3.0, 2.9, 2.8, 2.7], 3.5)["enough"] is None  # behind, and the curve goes away from it
    assert fit(tokens, [3.0, 2.0, 3.1, 2.1], 0.5)["enough"] is None  # noise
    assert fit(tokens, [3.0, 2.9, 2.81, 2.7], 0.5)["enough"] > 8e4


def test_a_compiled_row_is_its_reports_bound(request):
    """Tokens over the tokens of a step, times its milliseconds at best."""
    directory = request.config.rootpath / "docs" / "compile"
    for size in ("0.6B", "8B"):
        report = json.loads((directory / f"{SIZES[size][2]}.json").read_text())
        step = report["train_step"]
        steps = RECIPES["full, 300B (Efficient-DLM)"][0] / (step["batch_size"] * step["length"])
        expected = steps * step["at_best"]["products_ms"] / 3.6e6
        # Blocks of another length: attention sees a few pairs more or fewer.
        np.testing.assert_allclose(hours(size, "full, 300B (Efficient-DLM)", directory), expected, rtol=0.01)


@pytest.mark.parametrize("pattern", ["semi_block", "causal_block"])
def test_a_runs_checkpoints_are_measured_once(pattern, tiny_ar_dir, tmp_path, monkeypatch):
    devices = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda: devices[:1])
    c = default_config()
    c.dtype, c.steps, c.init.path = "float32", 3, str(tiny_ar_dir)
    c.lora.rank = 2
    c.objective.update(pattern=pattern, alignment="shifted", block_length=4, ar_weight=1.0)
    source = dict(kind="tasks", kinds=("sort",))
    c.data.update(batch_size=1, length=64, sources=(source,), eval_sources=(source | dict(split="test", size=4),))
    c.optimizer.learning_rate = 1e-2
    c.checkpoint.update(every=1, keep_every=1)
    train(Run.of(c), tmp_path / "run")
    out = tmp_path / "curve.json"
    main(str(tmp_path / "run"), str(out), "2", "0", "2")
    first = json.loads(out.read_text())
    assert [point["step"] for point in first["points"]] == [0, 2]
    assert [point["row_tokens"] for point in first["points"]] == [0, 128]
    assert first["fits"] == {}
    # What causal blocks learned is what follows: what is hidden has no bound there.
    assert all(("bound" in point) == (pattern == "semi_block") for point in first["points"])
    untrained, ar = first["points"][0], first["ar"]
    assert untrained["ways"]["AR"]["agreement"] == untrained["ways"]["AR"]["same_text"] == 1
    np.testing.assert_allclose(untrained["ar_loss"], ar["loss"], rtol=0.01)  # the mask's embedding is another one
    assert first["points"][1]["ar_loss"] < ar["loss"]
    between = first["points"][1] | dict(step=1, row_tokens=64)
    only_it = lambda self, step: between if step == 1 else pytest.fail("measured again")  # noqa: E731
    monkeypatch.setattr(Checkpoints, "point", only_it)
    main(str(tmp_path / "run"), str(out), "2", "1")
    assert [point["step"] for point in json.loads(out.read_text())["points"]] == [0, 1, 2]
    assert out.with_suffix(".png").stat().st_size > 10_000
