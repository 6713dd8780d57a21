"""An export holds all that its model was trained with, wherever it is made."""

import dataclasses
import json
import shutil

import pytest

from edlm_jax import InputError, save_pretrained
from edlm_jax.pretrained import load_tokenizer
from edlm_jax.training.checkpoint import load_trained, write_workdir
from edlm_jax.training.initial import read_spec
from edlm_jax.training.run import Run
from tests.training.conftest import WORDS
from tests.training.tiny import random_model

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture
def other(corpus, tmp_path):
    """The same words in another order, another end, a chat template; no config.json."""
    directory = tmp_path / "other"
    directory.mkdir()
    tokenizer = json.loads((corpus / "tokenizer.json").read_text())
    vocab = {word: index for index, word in enumerate([*WORDS[::-1], "<eos>", "<|mask|>"])}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer | {"model": tokenizer["model"] | {"vocab": vocab}}))
    settings = dict(tokenizer_class="PreTrainedTokenizerFast", eos_token="w7", bos_token="w9")
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


def start(config, workdir):
    """What `train` leaves before its first step, and a checkpoint of random weights in place of the last."""
    run = Run.of(config)
    spec, tokenizer = read_spec(run.start)
    write_workdir(workdir, run.config, spec, run.start.lora)
    return tokenizer


def export(workdir, out, monkeypatch):
    """`edlm export` of it."""

    def restore(workdir, step, abstract):
        return abstract

    (workdir / "checkpoints" / "3").mkdir(parents=True)
    monkeypatch.setattr("edlm_jax.training.checkpoint.restore_params", restore)
    model = random_model()
    model.spec = dataclasses.replace(load_trained(workdir).spec)
    save_pretrained(model, out)
    return json.loads((out / "config.json").read_text())


def test_the_tokenizer_of_the_data_is_exported_and_its_ends_are_the_models(config, other, tmp_path, monkeypatch):
    config.data.tokenizer = str(other)
    trained_with = start(config, tmp_path / "run")
    shutil.rmtree(other)
    written = export(tmp_path / "run", tmp_path / "out", monkeypatch)
    exported = load_tokenizer(tmp_path / "out")
    assert exported.get_vocab() == trained_with.get_vocab() and exported.eos_token == "w7"
    assert exported.chat_template == TEMPLATE
    assert (written["eos_token_id"], written["bos_token_id"]) == (exported.eos_token_id, exported.bos_token_id)


@pytest.mark.parametrize("stated", [None, 5, [5, 6], [5, 91]])
def test_config_json_names_the_end_that_is_learned(config, checkpoint, tmp_path, monkeypatch, stated):
    model = shutil.copytree(checkpoint, tmp_path / "ar")
    described = json.loads((model / "config.json").read_text()) | {"eos_token_id": stated, "bos_token_id": 3}
    (model / "config.json").write_text(json.dumps(described))
    config.init.path = str(model)
    tokenizer = start(config, tmp_path / "run")
    written = export(tmp_path / "run", tmp_path / "out", monkeypatch)
    assert tokenizer.eos_token_id == 91
    expected = {None: 91, 5: [91, 5], (5, 6): [91, 5, 6], (5, 91): [5, 91]}
    assert written["eos_token_id"] == expected[tuple(stated) if isinstance(stated, list) else stated]
    assert written["bos_token_id"] == 3


def test_a_relative_path_is_no_matter(config, checkpoint, other, tmp_path, monkeypatch):
    shutil.copytree(checkpoint, tmp_path / "here" / "ar")
    shutil.copytree(other, tmp_path / "here" / "words")
    (tmp_path / "elsewhere").mkdir()
    for tokenizer in ("", "words"):
        monkeypatch.chdir(tmp_path / "here")
        config.init.path, config.data.tokenizer, workdir = "ar", tokenizer, tmp_path / f"run{tokenizer}"
        start(config, workdir)
        monkeypatch.chdir(tmp_path / "elsewhere")
        export(workdir, tmp_path / f"out{tokenizer}", monkeypatch)
        assert load_tokenizer(tmp_path / f"out{tokenizer}").eos_token == ("w7" if tokenizer else "<eos>")


def test_a_run_that_is_started_again_keeps_the_newer_tokenizer(config, other, tmp_path, monkeypatch):
    start(config, tmp_path / "run")
    config.data.tokenizer = str(other)
    start(config, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", monkeypatch)
    assert load_tokenizer(tmp_path / "out").eos_token == "w7"


def test_random_weights_without_a_tokenizer_are_refused(config):
    config.init.update(path="", hf_config=random_model().spec.to_hf())
    with pytest.raises(InputError, match="set config.data.tokenizer"):
        read_spec(Run.of(config).start)
