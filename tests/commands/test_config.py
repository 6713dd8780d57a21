"""Config files and overrides: applied with their types, refused in one line."""

import re

import pytest

from edlm_jax.commands.config import load_config, recorded_configs
from edlm_jax.errors import InputError

FILE = """
from ml_collections import config_dict

def get_config(arg=""):
    c = config_dict.ConfigDict()
    c.steps = 3
    c.shuffle = True
    c.name = arg
    c.optimizer = config_dict.create(learning_rate=0.1, betas=(1, 2))
    return c
"""


@pytest.fixture
def path(tmp_path) -> str:
    file = tmp_path / "some_config.py"
    file.write_text(FILE)
    return str(file)


def test_overrides_keep_the_types(path):
    c = load_config(path, ["--config.steps=4", "--config.optimizer.learning_rate=1", "--config.shuffle=false"])
    assert (c.steps, c.shuffle) == (4, False)
    assert c.optimizer.learning_rate == 1.0 and isinstance(c.optimizer.learning_rate, float)
    assert load_config(path, ["--config.optimizer.betas=(4,8)"]).optimizer.betas == (4, 8)
    assert load_config(path + ":tiny").name == "tiny"


def test_a_number_may_be_none_and_one_again(path):
    rate = "--config.optimizer.learning_rate="
    for values, expected in ((["None"], None), (["None", "3"], 3.0)):
        assert load_config(path, [rate + value for value in values]).optimizer.learning_rate == expected
    study = "studies/attention"  # which sets one to None itself
    assert load_config(study).base.objective.half_life is None
    assert load_config(study, ["--config.base.objective.half_life=0.25"]).base.objective.half_life == 0.25


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("--config.stepz=4", "unknown config key stepz; did you mean steps?"),
        ("--config.optimizer.learning_rat=4", "did you mean optimizer.learning_rate?"),
        ("--config.nowhere.near=4", "unknown config key nowhere.near"),
        ("--config.steps.inner=4", "unknown config key steps.inner"),
        ("--config.=4", "unknown config key "),
        ("--config.steps=abc", "config.steps=abc"),
        ("--config.steps=1.5", "config.steps=1.5"),
        ("--config.optimizer.learning_rate=fast", "config.optimizer.learning_rate=fast"),
        ("--config.shuffle=maybe", "config.shuffle=maybe"),
        ("--config.optimizer=3", "config.optimizer=3"),
        ("--config.steps", "--config.steps has no value: write --config.steps=VALUE"),
        ("--config.steps=None", "config.steps=None"),
        ("--config.optimizer.betas[0]=4", "0 is not a valid index"),
        ("--config.optimizer.betas[=4", "unknown config key optimizer.betas["),
        ("--config.keys=4", "unknown config key keys"),
    ],
)
def test_bad_overrides_are_refused_in_one_line(path, override, reason):
    with pytest.raises(InputError) as error:
        load_config(path, [override])
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_bad_files_are_refused_in_one_line(tmp_path):
    broken, empty = tmp_path / "broken.py", tmp_path / "empty.py"
    broken.write_text("def get_config(:\n")
    empty.write_text("")
    for path, reason in [
        (tmp_path / "absent.py", "neither a file nor one of"),
        (tmp_path, "neither a file nor one of"),
        (broken, "SyntaxError"),
    ]:
        with pytest.raises(InputError, match=reason) as error:
            load_config(str(path))
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="empty.py does not load: NameError: it has no get_config"):
        load_config(str(empty))


def test_a_variant_that_there_is_not_is_refused():
    for name in ("qwen3_0_6b:plan", "efficient_dlm_8b:plan", "quickstart:plan"):
        with pytest.raises(InputError, match="does not load"):
            load_config(name)


@pytest.mark.parametrize("variant", ["first", "first/96"])
def test_the_step_that_a_recorded_command_exports_stays_until_the_end_of_the_run(variant):
    c = load_config(f"quickstart_ar:{variant}")
    step = int(re.search(r"--step=(\d+)", recorded_configs()["quickstart_ar"].read_text())[1])
    assert step % c.checkpoint.every == 0
    assert c.checkpoint.keep_every and step % c.checkpoint.keep_every == 0 and step < c.steps
