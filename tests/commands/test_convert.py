"""`edlm convert` from an AR directory to the report, and again."""

import gc
import json

import jax
import pytest
from safetensors.flax import load_file

from edlm_jax import load_pretrained, save_pretrained
from edlm_jax.commands import conversion
from edlm_jax.commands.config import load_run
from edlm_jax.commands.main import main
from edlm_jax.evaluation import heldout
from edlm_jax.evaluation.compare import compare_accuracy
from edlm_jax.parallel import processes


def test_the_whole_job_and_its_repetition(tiny_config, tmp_path, monkeypatch, capsys):
    monkeypatch.undo()  # all eight devices train
    workdir = tmp_path / "runs" / "tiny"
    argv = ["convert", f"--config={tiny_config}", f"--workdir={workdir}"]
    assert main(argv) == 0, capsys.readouterr().err
    assert "tokens/forward" in capsys.readouterr().out

    report = json.loads((workdir / "report.json").read_text())
    assert report["name"] == "tiny"
    assert set(report["ar"]) >= {"accuracy", "tokens_per_second", "kinds"}
    assert [entry["threshold"] for entry in report["diffusion"]] == [1.0, 0.0]
    cautious, bold = report["diffusion"]
    assert cautious["tokens_per_forward"] <= 1.0 < bold["tokens_per_forward"]
    for entry in (report["ar"], cautious, bold):
        assert set(entry["kinds"]) == {"sort", "sums"}
        assert entry["tokens_per_second"] > 0
    assert set(report["stage_seconds"]) == set(conversion.STAGES)
    assert report["seconds"] == pytest.approx(sum(report["stage_seconds"].values()))
    assert report["heldout_loss"]["ar"] == pytest.approx(5.56, abs=0.1)  # ln 259: a model that knows nothing
    assert len(report["weight_drift"]["ffn"]["relative"]) == 2 and min(report["weight_drift"]["ffn"]["relative"]) > 0
    assert (workdir / "report.png").read_bytes().startswith(b"\x89PNG")
    model = load_pretrained(workdir / "model", "float32")
    assert (model.spec.conversion.mask_token_id, model.spec.conversion.block_length) == (258, 4)

    monkeypatch.setattr(conversion, "train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(conversion.compare, "compare_speed", lambda *_: pytest.fail("measured again"))
    assert main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == report

    assert main([*argv, "--config.objective.block_length=8"]) == 2
    assert "objective.block_length" in capsys.readouterr().err
    assert json.loads((workdir / "report.json").read_text()) == report


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_is_exported_is_stored_as_its_source_is(tiny_config, tiny_ar_dir, tmp_path, monkeypatch, dtype):
    trained = load_pretrained(tiny_ar_dir, "float32")
    save_pretrained(trained, tmp_path / "source", dtype=dtype)
    monkeypatch.setattr(conversion, "load_trained", lambda *_, **__: trained)
    run = load_run(tiny_config, [f"--config.init.path={tmp_path / 'source'}"])
    conversion._Job(run, tmp_path).export()
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == dtype
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in stored.values()} == {dtype}


def test_the_devices_that_trained_measure_what_one_does(tiny_config, tiny_converted_dir, tmp_path, monkeypatch):
    (tmp_path / "model").symlink_to(tiny_converted_dir)
    meshes, measure = [], heldout.nats
    spied = lambda *args: (meshes.append(jax.sharding.get_abstract_mesh()), measure(*args))[1]  # noqa: E731
    monkeypatch.setattr(heldout, "nats", spied)

    def measured(*overrides):
        job, before = conversion._Job(load_run(tiny_config, overrides), tmp_path), live_bytes()
        (tasks, _), ends = job.tasks, job.text.ends
        decoders = {way.decoder for way in job.ways}
        assert live_bytes() - before == sum(x.nbytes for decoder in decoders for x in jax.tree.leaves(decoder.weights))
        prompts = [question.prompt for question in tasks[0].questions]
        tokens = [way.decoder(prompts, way.mode, limit=9, ends=ends).tokens for way in job.ways]
        return job, tokens, compare_accuracy(job.ways, tasks, job.text, 1), job.heldout()

    one, *alone = measured()
    assert one.trained_on is None and all(way.decoder.weights.mesh is None for way in one.ways)
    assert meshes and all(mesh.empty for mesh in meshes)
    monkeypatch.setattr(jax, "devices", jax.local_devices)
    meshes.clear()
    eight, tokens, accuracy, loss = measured("--config.mesh.tensor=2")
    assert [tokens, accuracy] == alone[:2] and loss == pytest.approx(alone[2], rel=1e-6)
    assert meshes and all(dict(mesh.shape) == dict(data=1, fsdp=4, tensor=2, context=1) for mesh in meshes)
    for way in eight.ways:
        assert dict(way.decoder.weights.mesh.shape) == dict(data=4, fsdp=1, tensor=2, context=1)
        matrices = [w for layer in way.decoder.weights.layers for name, w in layer.items() if "norm" not in name]
        assert all(2 * w.addressable_shards[0].data.nbytes == w.nbytes for w in matrices)  # once a pair of devices


def live_bytes():
    gc.collect()
    return sum(x.nbytes for x in jax.live_arrays() if not x.is_deleted())


def test_many_processes_are_told_to_train_first(tiny_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(processes, "connect", lambda timeout: 2)
    assert main(["convert", f"--config={tiny_config}", f"--workdir={tmp_path / 'run'}"]) == 2
    assert "edlm convert measures in one process, and 2 run it: run `edlm train`" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
