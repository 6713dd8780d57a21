"""The command line: exit codes, one-line reasons, help that loads nothing heavy."""

import json
import subprocess
import sys

import pytest

from edlm_jax.commands import generate as generate_command
from edlm_jax.commands.main import COMMANDS, main
from edlm_jax.errors import InputError, StoppedError


def fail(capsys, *argv: str) -> str:
    """Runs a command that must refuse its input; its one line."""
    assert main(list(argv)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_names_what_the_command_does(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for expected in ["--json", "--debug"] if command else COMMANDS:
        assert expected in text


def test_help_imports_nothing_heavy():
    code = "import sys; from edlm_jax.commands import main; main.build_parser(None).format_help(); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"jax", "numpy", "transformers", "matplotlib", "rich"} & set(modules)


def test_no_command_and_unknown_commands_are_refused(capsys):
    assert "COMMAND" in fail(capsys)
    assert "convertt" in fail(capsys, "convertt")
    assert "--modle" in fail(capsys, "generate", "--model=x", "--modle=y")
    assert "--config.steps=1" in fail(capsys, "export", "--workdir=a", "--out=b", "--config.steps=1")
    assert "--workdir" in fail(capsys, "train", "--config=configs/quickstart.py")


def stand_in(monkeypatch, outcome):
    """`edlm generate` whose work is `outcome`."""

    def run(args):
        print("a library's chatter")
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(generate_command, "run", run)
    return ["generate", "--model=anywhere"]


def test_json_is_all_there_is_on_stdout(monkeypatch, capsys):
    argv = stand_in(monkeypatch, {"answer": 3})
    assert main([*argv, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"answer": 3}
    assert "chatter" in captured.err


@pytest.mark.parametrize(
    ("outcome", "code", "reason"),
    [
        (InputError("no such thing"), 2, "edlm: no such thing"),
        (StoppedError("stopped at step 3 of 9"), 143, "edlm: stopped at step 3 of 9"),
        (KeyboardInterrupt(), 130, "edlm: interrupted"),
        (
            ZeroDivisionError("by nought\nand more"),
            1,
            "edlm: ZeroDivisionError: by nought (--debug shows the traceback)",
        ),
    ],
)
def test_exit_codes_and_tracebacks(monkeypatch, capsys, outcome, code, reason):
    argv = stand_in(monkeypatch, outcome)
    assert main(argv) == code
    assert capsys.readouterr().err == reason + "\n"
    assert main([*argv, "--debug"]) == code
    assert "Traceback" in capsys.readouterr().err
