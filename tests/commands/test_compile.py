"""edlm compile: bad input, the exit code, what is printed; and the page that is made of its JSON."""

import json
from pathlib import Path

import pytest

from edlm_jax.benchmarks import aot
from edlm_jax.commands import compile as command
from edlm_jax.commands.main import main
from tests.benchmarks.compile_table import table

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "efficient_dlm_8b.py")


def report(fits):
    program = dict(fits=fits, argument_bytes=2**30, temporary_bytes=2**31, peak_bytes=3 * 2**30, trace_seconds=1.0)
    program |= dict(compile_seconds=2.0, collectives={"all-gather": dict(count=3, bytes=2**30)})
    tiles = dict(queries=512, keys=512, visited=80, total=256, over_ideal=1.0)
    bound = dict(products_ms=4.0, memory_ms=2.0, links_ms=1.0, bound_by="products", mfu_at_best=0.75)
    step = program | dict(model_flops=1e15, flops_per_device=1e13, micro_batches=2, remat="full", attention_tiles=tiles)
    step["at_best"] = bound
    described = dict(chips=4, devices=4, device_kind="TPU v5 lite", mesh=dict(fsdp=4), memory_per_device=2**34)
    return described | dict(train_step=step, decoder=program | dict(denoise_at_best=bound), fits=fits)


@pytest.mark.parametrize("fits", [True, False])
def test_exit_code_says_whether_it_fits(monkeypatch, capsys, fits):
    seen = []
    monkeypatch.setattr(aot, "compile_report", lambda *args: seen.append(args) or report(fits))
    arguments = ["compile", f"--config={CONFIG}", "--topology=v5e:2x2", "--num_slices=2", "--config.steps=7000"]
    assert main(arguments) == (0 if fits else 1)
    (config, *where), out = seen[0], capsys.readouterr().out
    assert (config.steps, *where) == (7000, "v5e:2x2", 2, 1)
    assert "3.00 GiB at the peak, of 16.00 GiB" in out and "80 of 256" in out
    assert out.strip().endswith("fits" if fits else "DOES NOT FIT")
    assert main([*arguments, "--json"]) == (0 if fits else 1)
    printed = json.loads(capsys.readouterr().out)
    assert {"jax", "jaxlib"} <= printed["versions"].keys() and printed["hardware"]["cpu_cores"] >= 1
    assert printed["command"] == f"edlm compile --config={CONFIG} --topology=v5e:2x2 --num_slices=2 --config.steps=7000"


def test_a_program_that_the_compiler_gave_up_on_is_shown(capsys):
    failed = report(False) | dict(train_step=dict(fits=False, reason="RESOURCE_EXHAUSTED: 17G of 16G"))
    command.show(failed, None)
    assert "17G of 16G" in capsys.readouterr().out


def test_bad_input_is_one_line(capsys):
    assert main(["compile", f"--config={CONFIG}", "--topology=v5e:2x2", "--num_slices=0"]) == 2
    assert main(["compile", f"--config={CONFIG}", "--topology=v99:2x2"]) == 2
    assert main(["compile", f"--config={CONFIG}", "--topology=h100:some"]) == 2
    assert main(["compile", f"--config={CONFIG}", "--topology=h100:8", "--num_slices=2"]) == 2
    assert main(["compile", f"--config={CONFIG}", "--topology=v5e:2x2", "--hosts=2"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert "--num_slices" in lines[0] and ("v99" in lines[-4] or "libtpu" in lines[-4])
    assert "h100:8" in lines[-3] and "--hosts=N" in lines[-2] and "--num_slices" in lines[-1]


def test_the_page_has_a_line_a_report(capsys):
    one = report(True) | dict(command="edlm compile --config=configs/x.py --topology=v5e:2x2", topology="v5e:2x2")
    one |= dict(num_slices=2)
    one["train_step"] |= dict(batch_size=8)
    kernels = [dict(name="dq_kernel", shared_bytes=98560, registers=201, spill_bytes=8)]
    gpu = json.loads(json.dumps(one)) | dict(topology="h100:8", num_slices=1, hosts=16)
    gpu["train_step"] |= dict(kernels=kernels, shared_limit=232448)
    gpu["command"] = "edlm compile --config=x:planned --topology=h100:8"  # by its name alone
    before = json.loads(json.dumps(one))
    before["train_step"]["collectives"] = {"all-reduce": dict(count=1, bytes=2**30)}
    page = table([(one, before), (gpu, None)])
    tpus, gpus = page.split("## GPUs")
    assert "| x | 2 x v5e:2x2 | fsdp 4 | 4 x 2, full | 3.0 / 16.0 |" in tpus and "all-gather 1.0 | 1.0 (2.0) |" in tpus
    assert "| 4, 2, 1 | products, 0.75 | nothing computed again: 3 ms | 4, products |" in tpus
    assert "| x:planned | 16 x h100:8 | fsdp 4 |" in gpus and "all-gather 1.0 | 1.0 |" in gpus
    assert "| 98560 / 232448 | 8 |" in gpus
    command.show(gpu, None)
    assert "98560 of 232448 bytes of shared memory, 201 registers, 8 bytes spilled" in capsys.readouterr().out
