"""`edlm bench`: every way of decoding on the same prompts, counts are of generated tokens; the real training step."""

import json

import huggingface_hub
import pytest

from edlm_jax.attention import Tiles
from edlm_jax.benchmarks import attention as attention_benchmark
from edlm_jax.benchmarks.attention import time_attention
from edlm_jax.benchmarks.decoding import waiting
from edlm_jax.commands.config import load_run
from edlm_jax.commands.main import main
from edlm_jax.errors import InputError
from edlm_jax.parallel.cpu import available
from edlm_jax.parallel.devices import DEVICES, Device
from tests.conftest import TINY


def test_rows_wait_for_the_slowest_of_their_batch():
    assert waiting([1, 3, 2, 2, 9], batch_size=2) == pytest.approx(2 / 10)  # one waits 2 of 3; the last is in no batch
    assert waiting([5, 1, 7], batch_size=1) == 0


def test_bench_decode(tiny_converted_dir, capsys):
    arguments = ["--batch-sizes=1,2", "--prompts=2", "--max-new-tokens=6", "--thresholds=0.9", "--repeats=1"]
    assert main(["bench", "decode", f"--model={tiny_converted_dir}", *arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    ways = {"ar", "diffusion 0.9", "diffusion 0.9, separate commit"}
    for rates in result["tokens_per_second"].values():
        assert ways <= rates.keys() and all(rate > 0 for rate in rates.values())
    assert result["tokens_per_forward"]["ar"] == 1.0
    assert all(share == 0 for share in result["waiting"]["1"].values()) and ways <= result["waiting"]["2"].keys()
    assert result["forward_ratio"]["1"] == 1.0 and result["forward_seconds"].keys() == {"1", "4", "8"}


def test_bench_decode_compares_modes_with_ar(tiny_converted_dir, capsys):
    arguments = ["--batch-sizes=2", "--prompts=2", "--prompt-tokens=5", "--max-new-tokens=6", "--repeats=1"]
    arguments += ["--modes=prompt_lookup self_speculation:drafts=2", f"--model={tiny_converted_dir}"]
    assert main(["bench", "decode", *arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["columns"] == {"ar": 1, "prompt_lookup": 4, "self_speculation:drafts=2": 3}
    assert set(result["prompts_as_ar"].values()) == {result["prompts"]} == {2}
    assert result["tokens_per_second"]["2"].keys() >= result["columns"].keys()
    assert result["forward_seconds"].keys() == {"1", "3", "4"} and result["waiting"]["2"]["ar"] == 0  # no end


def test_bench_serve(tiny_converted_dir, tmp_path, capsys):
    """Two clients and one, a mode alone and by load; answers have the trace's lengths."""
    arguments = ["--modes=ar prompt_lookup", "--concurrency=1,2", "--prompts=2", f"--out={tmp_path}", "--json"]
    assert main(["bench", "serve", f"--model={tiny_converted_dir}", *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    for ways in result["serving"].values():
        assert ways.keys() == {"ar", "prompt_lookup", "by load"} and ways["ar"]["tokens_per_forward"] == 1.0
        assert all(0 < found["first_token_p50"] <= found["first_token_p95"] for found in ways.values())
    assert (tmp_path / "serve.png").exists()
    assert result["paces"].keys() == {"ar", "prompt_lookup"} and result["paces"]["ar"]["plain"].keys() == {"1", "2"}
    assert main(["bench", "serve", f"--model={tiny_converted_dir}", "--modes=ar", *arguments[1:]]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["serving"]["2"].keys() == {"ar"} and result["paces"] == {}  # there is nothing to choose from


def test_bench_forward_needs_a_config_alone(tmp_path, capsys, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(TINY | {"dtype": "bfloat16"}))
    monkeypatch.setattr("edlm_jax.benchmarks.forward.COLUMNS", (1, 3))
    monkeypatch.setattr("edlm_jax.benchmarks.forward._SIDE", 64)
    arguments = [f"--model={tmp_path}", "--repeats=1", "--batch-sizes=1,2"]
    assert main(["bench", "forward", *arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    for rows in ("1", "2"):
        ms, ratio = result["forward_ms"][rows], result["forward_ratio"][rows]
        assert ms.keys() == {"1", "3"} and ratio["1"] == 1.0 and ratio["3"] == pytest.approx(ms["3"] / ms["1"])
    assert result["product_ms"]["2"]["3"] == pytest.approx(6 * result["product_ms"]["1"]["1"])
    # 2 layers of q, k, v, o, gate, up, down, and the tied head; narrow where the kernels are, in whole strips of 32.
    layer, head = 32 * (32 + 32) + 32 * 32 + 32 * 96 + 48 * 32, 32 * 259
    packed = 2 * (2 * layer + 32 * 288)
    assert result["weight_bytes"] == (packed if available() else 4 * (2 * layer + head))
    assert main(["bench", "forward", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "bound by" in printed and ("found no C++ compiler" in printed) == (not available())


def test_bench_train(tiny_config, capsys, monkeypatch):
    monkeypatch.undo()  # all eight devices
    monkeypatch.setitem(DEVICES, "cpu", Device(peak_flops=1e12))  # as of a GPU or a TPU
    arguments = [f"--config={tiny_config}", "--config.data.length=32", "--steps=3", "--json"]
    assert main(["bench", "train", *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    seconds = result["seconds_per_step"]
    assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
    assert result["tokens_per_second"] == pytest.approx(8 * 32 / seconds["median"])
    assert result["model_flops_per_second"] == pytest.approx(result["model_flops_per_step"] / seconds["median"])
    assert result["loss"] > 0 and result["mesh"]["fsdp"] == 8
    state = sum(result["state_bytes"][name] for name in ("parameters", "optimizer")) / 8  # of a device
    assert result["peak_bytes"]["planned"] > 1.5 * state  # what the forward pass keeps counts, too
    attention = result["attention"]
    slower = attention["dense"]["milliseconds"] / attention["attend"]["milliseconds"]
    assert attention["speedup"] == pytest.approx(slower) and attention["ideal_speedup"] > 4  # of two streams, packed
    for side in ("attend", "dense"):
        expected = attention["flops"] / (attention[side]["milliseconds"] / 1e3) / 1e12
        assert attention[side]["of_peak"] == pytest.approx(expected)
    assert "not_measured" in result["peer"]  # no torch, or no GPU
    assert main(["bench", "train", *arguments[:-1]]) == 0
    assert "tokens/s" in capsys.readouterr().out


def test_tiles_that_a_machine_refuses_take_no_other_side_along(tiny_config, monkeypatch):
    plan, odd = attention_benchmark.plan_attention, Tiles(32, 64)

    def planned_on_tpu(sight, heads, tiles=None):
        if tiles == odd:
            raise InputError("tiles of attention on TPU are multiples of 128")
        return plan(sight, heads, tiles)

    monkeypatch.setattr(attention_benchmark, "plan_attention", planned_on_tpu)
    found = time_attention(load_run(tiny_config, ["--config.data.length=32"]), [odd, Tiles(64, 64)])
    assert found["tiles of 32 x 64"] == {"error": "tiles of attention on TPU are multiples of 128"}
    assert found["tiles of 64 x 64"]["milliseconds"] > 0 and found["speedup"] > 0


def test_bench_forward_takes_what_names_a_model(tiny_config, tmp_path, capsys, monkeypatch):
    """A config that starts from a checkpoint, and a hub id, of which no weights are downloaded."""
    asked = []

    def snapshot_download(repo, allow_patterns):
        asked.extend(allow_patterns)
        return str(tmp_path)

    (tmp_path / "config.json").write_text(json.dumps(TINY))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr("edlm_jax.benchmarks.forward.COLUMNS", (1,))
    monkeypatch.setattr("edlm_jax.benchmarks.forward._SIDE", 64)
    for model in (f"--config={tiny_config}", "--model=some/tiny"):
        assert main(["bench", "forward", model, "--repeats=1", "--batch-sizes=1", "--json"]) == 0
    assert "config.json" in asked and not any("safetensors" in pattern for pattern in asked)


@pytest.mark.parametrize("arguments", [["train"], ["attention"], ["decode"], ["serve"], ["forward"]])
def test_bench_asks_for_what_it_needs(arguments, capsys):
    assert main(["bench", *arguments]) == 2
    assert "needs --" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("--batch-sizes=1,x", "numbers separated"),
        ("--batch-sizes=0", "positive"),
        ("--batch-sizes=64", "as many --prompts"),
        ("--repeats=0", "--repeats must be positive, not 0"),
        ("--prompts=0", "--prompts must be positive"),
        ("--steps=0", "--steps must be positive"),
        ("--length=11", "--length must be at least 12"),
    ],
)
def test_bench_refuses(tiny_converted_dir, capsys, argument, reason):
    assert main(["bench", "decode", f"--model={tiny_converted_dir}", argument]) == 2
    assert reason in capsys.readouterr().err
