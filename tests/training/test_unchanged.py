"""A run goes on by what it began with: files that its config names by their paths may have become others."""

import json
import shutil

import pytest

from edlm_jax.errors import InputError
from edlm_jax.training.run import Run
from edlm_jax.training.train import train


def test_a_run_goes_on_with_the_tokenizer_and_the_states_that_it_began_with(config, corpus, tmp_path):
    tokenizer, states, workdir = tmp_path / "tokenizer", tmp_path / "own.jsonl", tmp_path / "run"
    shutil.copytree(corpus, tokenizer)
    states.write_text('{"accepted_at": [1, 3, 1, 2]}\n')
    config.data.tokenizer, config.steps = str(tokenizer), 1
    config.objective.update(noise="visited", states=str(states))
    train(Run.of(config), workdir)
    config.steps = 2
    for path, old, new, what in (
        (states, "[1, 3, 1, 2]", "[1, 3, 2, 1]", "config.objective.states"),
        (tokenizer / "tokenizer.json", '"w1": 1,', '"w_1": 1,', "the tokenizer"),
        (tokenizer / "tokenizer_config.json", '"eos_token"', '"bos_token": "w2", "eos_token"', "the tokenizer"),
    ):
        before = path.read_text()
        assert old in before
        path.write_text(before.replace(old, new))
        with pytest.raises(InputError, match=f"since whose beginning {what} changed: put back") as error:
            train(Run.of(config), workdir)
        assert "\n" not in str(error.value)
        path.write_text(before)
    described = json.loads((workdir / "model.json").read_text())
    del described["states"]  # as older versions wrote it
    (workdir / "model.json").write_text(json.dumps(described))
    shutil.rmtree(workdir / "tokenizer")
    assert train(Run.of(config), workdir)["completed"]
