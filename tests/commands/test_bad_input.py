"""Bad input to the commands: exit code 2, one line that names it, nothing written."""

import json
import shutil

import pytest

from edlm_jax.commands.main import main
from tests.commands.test_main import fail


@pytest.fixture
def convert(tiny_config, tmp_path, capsys):
    """`edlm convert` with overrides that must be refused before a work directory exists."""
    workdir = tmp_path / "runs" / "workdir"

    def refused(*overrides: str) -> str:
        assert main(["convert", f"--config={tiny_config}", f"--workdir={workdir}", *overrides]) == 2
        *stages, reason = capsys.readouterr().err.strip().splitlines()
        assert all(line.startswith("[") for line in stages)
        assert not workdir.parent.exists()
        return reason

    return refused


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("objective.patern=causal", "objective.pattern"),
        ("steps=many", "config.steps=many"),
        ("data.length=126", "blocks of 4 do not divide config.data.length=126"),
        ("objective.block_length=0", "objective.block_length must be positive"),
        ("objective.block_length=-4", "objective.block_length must be positive"),
        ("evaluation.thresholds=(0.9,1.5)", "[0, 1], not 1.5"),
        ("evaluation.thresholds=('high',)", "[0, 1], not 'high'"),
        ("evaluation.thresholds=()", "thresholds is empty"),
        ("evaluation.tasks=()", "evaluation.tasks is empty"),
        ("evaluation.timed_prompts=0", "evaluation.timed_prompts must be positive"),
        ("objective.pattern=causal", "use `edlm train`"),
        ("init.path=nowhere", "nowhere is neither a directory nor a hub id"),
        ("init.path=", "config.init.path"),
        ("data.sources=()", "no data"),
        ("data.sources[0].kind=txet", "txet"),
        ("evaluation.tasks[0].split=both", "both"),
    ],
)
def test_settings_are_refused_before_anything_is_written(convert, override, reason):
    assert reason in convert(f"--config.{override}")


def test_a_teacher_that_is_not_there_is_refused(convert):
    assert "need each other" in convert("--config.objective.teacher=nowhere")
    both = "--config.objective.teacher=nowhere", "--config.objective.teacher_weight=0.5"
    assert "nowhere is neither a directory nor a hub id" in convert(*both)


def test_an_empty_corpus_is_refused_and_what_is_not_utf8_counted(convert, tmp_path, caplog):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    source = f"--config.data.sources=({{'kind': 'text', 'path': {str(corpus)!r}}},)"
    assert str(corpus) in convert(source)
    (corpus / "blank.txt").write_text("\n\n")
    assert "no documents" in convert(source)
    (corpus / "latin1.txt").write_bytes("fa\xe7ade".encode("latin-1"))
    assert "no documents" in convert(source)
    assert "skipped 1 documents that are not UTF-8" in caplog.text


def test_a_tokenizer_of_another_model_is_refused(convert, tiny_ar_dir, tmp_path):
    foreign = shutil.copytree(tiny_ar_dir, tmp_path / "foreign")
    tokenizer = json.loads((foreign / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][-1] | {"id": 400, "content": "<|new|>"})
    tokenizer["model"]["vocab"]["<|new|>"] = 400
    (foreign / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "vocabulary" in convert(f"--config.init.path={foreign}")


def test_a_missing_or_foreign_model_directory_is_refused(tmp_path, capsys):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("not a model")
    empty = "'' is neither a directory"  # a shell's variable that is not set
    assert empty in fail(capsys, "export", "--model=", f"--out={tmp_path / 'out'}")
    for model, reason in [(tmp_path / "absent", "neither a directory"), (foreign, "config.json"), ("", empty)]:
        assert reason in fail(capsys, "generate", f"--model={model}", "--prompt=a")
        assert reason in fail(capsys, "evaluate", f"--model={model}")


def test_a_work_directory_in_place_of_its_model_is_told_apart(tmp_path, capsys):
    (tmp_path / "model.json").write_text("{}")
    assert f"edlm export --workdir={tmp_path}" in fail(capsys, "generate", f"--model={tmp_path}", "--prompt=a")
    (tmp_path / "model").mkdir()
    assert f"use {tmp_path / 'model'}" in fail(capsys, "generate", f"--model={tmp_path}", "--prompt=a")


def test_a_file_where_a_directory_should_be_is_named(tiny_converted_dir, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    assert f"{file}" in fail(capsys, "diagnose", f"--model={tiny_converted_dir}", f"--out={file}/out")


def test_export_of_no_run_is_refused(tmp_path, capsys):
    (tmp_path / "foreign" / "checkpoints" / "7").mkdir(parents=True)
    for workdir in ("absent", "foreign"):
        out = tmp_path / "out"
        assert "not the work directory" in fail(capsys, "export", f"--workdir={tmp_path / workdir}", f"--out={out}")
        assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--prompt=a", "--threshold=1.5"], "threshold must lie in [0, 1]"),
        (["--prompt=a", "--threshold=-0.1"], "threshold must lie in [0, 1]"),
        (["--prompt=a", "--block-length=-8"], "block_length must be a positive"),
        (["--prompt=a", "--max-new-tokens=0"], "max_new_tokens must be positive"),
        (["--prompt=" + "a" * 600], "exceed the model's cache of 512"),
        (["--prompts-file=/nowhere/prompts"], "/nowhere/prompts"),
        (["--prompt="], "prompt 0 is empty"),
    ],
)
def test_generate_refuses(tiny_converted_dir, capsys, arguments, reason):
    assert reason in fail(capsys, "generate", f"--model={tiny_converted_dir}", *arguments)


def test_generate_refuses_prompts_that_are_no_text(tiny_converted_dir, tmp_path, capsys):
    (tmp_path / "prompts").write_bytes(b"fine\nfa\xe7ade\n")
    assert "not UTF-8" in fail(
        capsys, "generate", f"--model={tiny_converted_dir}", f"--prompts-file={tmp_path / 'prompts'}"
    )
    (tmp_path / "prompts").write_text("\n")
    assert "no prompt" in fail(
        capsys, "generate", f"--model={tiny_converted_dir}", f"--prompts-file={tmp_path / 'prompts'}"
    )


def test_diffusion_from_a_model_that_was_never_converted_is_refused(tiny_ar_dir, capsys):
    assert "never converted" in fail(capsys, "generate", f"--model={tiny_ar_dir}", "--prompt=a", "--mode=diffusion")
    arguments = ["evaluate", f"--model={tiny_ar_dir}", f"--baseline={tiny_ar_dir}"]
    assert "never converted" in fail(capsys, *arguments)


@pytest.mark.parametrize(
    "argument",
    ["--thresholds=1,2", "--thresholds=high", "--count=0", "--data=what.is", "--task=chess", "--rows=0", "--rows=9"],
)
def test_evaluate_refuses(tiny_converted_dir, capsys, argument):
    assert argument.partition("=")[0] in fail(capsys, "evaluate", f"--model={tiny_converted_dir}", argument)
