"""`edlm bench all`: every part leaves its JSON; one that fails or takes too long says so, and the next one starts."""

import json
import subprocess
import sys
from pathlib import Path

from edlm_jax.benchmarks import accelerator
from edlm_jax.benchmarks.accelerator import Part, measure_all, parts
from edlm_jax.benchmarks.kernel_errors import kernel_errors
from edlm_jax.commands.config import load_config
from edlm_jax.commands.main import main

SLOW = {"train_1_5b", "forward_0_6b", "forward_4b"}  # other parts are like them, with other shapes


def test_the_parts_in_tiny_sizes(tmp_path, monkeypatch, capsys):
    chosen = [part for part in parts(tmp_path) if part.name not in SLOW]
    monkeypatch.setattr(accelerator, "parts", lambda out: chosen)
    assert main(["bench", "all", f"--out={tmp_path}", "--tiny", "--minutes=20", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["parts"]
    results = {part.name: json.loads((tmp_path / f"{part.name}.json").read_text()) for part in chosen}
    assert found.keys() == results.keys() and not any(part["failed"] for part in found.values()), found
    assert all(results["kernels"]["right"].values())
    assert results["attention"]["attention"]["tiles of 64 x 64"]["milliseconds"] > 0
    assert results["train_0_6b"]["tokens_per_second"] > 0 and results["quickstart"]["diffusion"]
    assert results["decode"]["tokens_per_second"]["1"].keys() >= {"ar", "diffusion 0.95"}


def test_the_real_model_is_a_part_where_its_file_is(tmp_path, monkeypatch):
    names = lambda: [part.name for part in parts(tmp_path)]  # noqa: E731
    monkeypatch.setattr(accelerator, "_SMOLLM2", tmp_path / "model.gguf")
    assert "smollm2" not in names()
    (tmp_path / "model.gguf").touch()
    assert names()[-1] == "smollm2" and f"--model={tmp_path / 'model.gguf'}" in parts(tmp_path)[-1].command


def test_a_part_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    late = Part("late", ("bench", "kernels"), 0.0005)
    wrong = Part("wrong", ("bench", "decode", "--model=/nowhere"), 0.9)
    monkeypatch.setattr(accelerator, "parts", lambda out: [late, wrong, Part("device", ("bench", "device"), 0.9)])
    found = measure_all(tmp_path, 60, tiny=False)
    assert "longer than its 2 s" in found["late"]["failed"] and "/nowhere" in found["wrong"]["failed"]
    assert found["device"]["failed"] is None
    assert json.loads((tmp_path / "late.json").read_text())["command"] == "edlm bench kernels"
    assert json.loads((tmp_path / "device.json").read_text())["platform"] == "cpu"
    found = measure_all(tmp_path, 0.01, tiny=False)
    assert {part["failed"] for part in found.values()} == {"no time was left"}
    monkeypatch.setattr(accelerator, "measure_all", lambda *args: found)
    assert main(["bench", "all", f"--out={tmp_path}"]) == 1
    assert "no time was left" in capsys.readouterr().out


def test_a_wrong_kernel_is_found(monkeypatch):
    from edlm_jax.benchmarks import kernel_errors as module

    right = module.plan_attention
    assert all(kernel_errors(length=24, rows=1)["right"].values())
    monkeypatch.setattr(module, "plan_attention", lambda *given: lambda q, k, v: 1.05 * right(*given)(q, k, v))
    assert not any(kernel_errors(length=24, rows=1)["right"].values())


def test_a_wrong_kernel_is_no_success(tmp_path, monkeypatch):
    """Its numbers stay, beside the exit code that says so."""
    program = tmp_path / "edlm"
    program.write_text("#!/bin/sh\necho '{\"right\": {\"float32\": false}}'\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(accelerator.sys, "executable", str(program))
    monkeypatch.setattr(accelerator, "parts", lambda out: [Part("kernels", ("bench", "kernels"), 0.9)])
    assert measure_all(tmp_path / "out", 1, tiny=False)["kernels"]["failed"] == "exit code 1"
    assert json.loads((tmp_path / "out" / "kernels.json").read_text())["right"] == {"float32": False}


def test_sigterm_leaves_no_part_behind(tmp_path):
    program, pid = tmp_path / "edlm", tmp_path / "pid"
    program.write_text(f"#!/bin/sh\necho $$ > {pid}\nsleep 1\nkill -TERM $PPID\nexec sleep 60\n")
    program.chmod(0o755)
    script = "import pathlib; from edlm_jax.benchmarks import accelerator as a\n"
    script += f"a.parts = lambda out: [a.Part('slow', (), 1)]; a.sys.executable = {str(program)!r}\n"
    script += f"a.measure_all(pathlib.Path({str(tmp_path)!r}), 1, False)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 143
    assert not Path("/proc", pid.read_text().strip()).exists()


def test_the_configs_of_parts_that_are_not_run_here_take_their_overrides(tmp_path):
    loaded = {}
    for part in parts(tmp_path):
        words = [*part.command, *part.tiny]
        for config in (word.removeprefix("--config=") for word in words if word.startswith("--config=")):
            loaded[part.name] = load_config(config, [word for word in words if word.startswith("--config.")])
    assert loaded.keys() >= SLOW
    for name in SLOW:
        assert loaded[name].init.hf_config.hidden_size == 64 and loaded[name].data.length == 128
