"""Runs that train adapters: what moves, what is kept of it, what it costs."""

import jax
import numpy as np
import pytest
from flax import nnx

from edlm_jax.benchmarks.training import state_bytes
from edlm_jax.errors import InputError
from edlm_jax.models.lora import ADAPTERS, Lora, partition
from edlm_jax.pretrained import load_pretrained
from edlm_jax.training.checkpoint import load_trained, restore_params
from edlm_jax.training.initial import abstract_state, read_spec
from edlm_jax.training.metrics import step_flops
from edlm_jax.training.run import Run
from edlm_jax.training.train import train
from tests.training.conftest import make_config
from tests.training.test_train import assert_drift, assert_same, params, raise_sigterm_in_step
from tests.training.tiny import make_objective, random_model

LORA = Lora(4, 32.0)


def lora_config(corpus, checkpoint):
    c = make_config(corpus, checkpoint)
    c.lora.rank = 4
    return c


@pytest.fixture(scope="module")
def finished(corpus, checkpoint, tmp_path_factory):
    """(work directory, summary) of a run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("lora")
    return workdir, train(Run.of(lora_config(corpus, checkpoint)), workdir)


def test_matrices_move_by_the_rank_and_the_run_knows_how_far(finished, checkpoint):
    workdir, summary = finished
    before, after = load_pretrained(checkpoint, "float32"), load_trained(workdir)
    assert not hasattr(after.layers, "q_a_DR")
    for matrix in ADAPTERS:
        moved = np.asarray(getattr(after.layers, matrix)[...] - getattr(before.layers, matrix)[...])[0]
        inputs = 32 if matrix == "o_NHD" else moved.shape[0]
        singular = np.linalg.svd(moved.reshape(inputs, -1), compute_uv=False)
        assert singular[3] > 1e-6 and singular[4] < 1e-6, matrix  # rank 4, in every one of them
    for name in ("embedding_VD", "final_norm_D"):
        assert np.any(getattr(after, name)[...] != getattr(before, name)[...])
    assert np.any(after.layers.mlp_norm_D[...] != before.layers.mlp_norm_D[...])
    assert_drift(summary, checkpoint, workdir)


def test_the_state_holds_what_is_frozen_as_it_was_and_no_moments_of_it(finished, config, checkpoint):
    config.lora.rank = 4
    run = Run.of(config)
    spec, _ = read_spec(run.start)
    _, abstract = abstract_state(run.start, run.optimizer, spec, run.make_mesh())
    kept = restore_params(finished[0], 6, abstract.params)
    before = nnx.to_pure_dict(nnx.state(load_pretrained(checkpoint, "float32"), nnx.Param))["layers"]
    for name, value in partition(kept, LORA)[1]["layers"].items():
        np.testing.assert_array_equal(value, before[name])
    moments = {path[-1].key for path, _ in jax.tree.leaves_with_path(abstract.opt_state) if hasattr(path[-1], "key")}
    assert "q_a_DR" in moments and not moments & set(ADAPTERS)
    config.dtype = "bfloat16"  # what nobody updates is kept as it is read
    _, abstract = abstract_state(Run.of(config).start, run.optimizer, spec, run.make_mesh())
    parts = partition(abstract.params, LORA)
    assert [{x.dtype.name for x in jax.tree.leaves(part)} for part in parts] == [{"float32"}, {"bfloat16"}]


def test_interrupted_equals_uninterrupted_bitwise(finished, corpus, checkpoint, tmp_path, monkeypatch):
    raise_sigterm_in_step(monkeypatch, 3)
    assert not train(Run.of(lora_config(corpus, checkpoint)), tmp_path)["completed"]
    monkeypatch.undo()
    assert train(Run.of(lora_config(corpus, checkpoint)), tmp_path)["completed"]
    assert_same(params(tmp_path), params(finished[0]))
    other = lora_config(corpus, checkpoint)
    other.lora.rank = 8
    with pytest.raises(InputError, match=r"\(lora.rank differ\)"):
        train(Run.of(other), tmp_path)
    other.init.path, other.init.hf_config = "", {"hidden_size": 8}
    with pytest.raises(InputError, match="nothing to adapt"):
        train(Run.of(other), tmp_path)


def test_what_a_step_takes(config):
    bytes_of, (spec, _) = {}, read_spec(Run.of(config).start)
    for rank in (0, 4):
        config.lora.rank = rank
        run = Run.of(config)
        _, abstract = abstract_state(run.start, run.optimizer, spec, run.make_mesh())
        bytes_of[rank] = state_bytes(abstract, run.start.lora)
    full, lora = bytes_of[0], bytes_of[4]
    assert full["optimizer"] == 2 * full["parameters"] + 8 and full["gradients"] == full["parameters"]
    matrices = 4 * spec.num_layers * (32 * 8 * (4 + 4 + 2 + 2) + 3 * 32 * 48)
    low_rank = 4 * spec.num_layers * 4 * (64 + 48 + 48 + 64 + 3 * 80)
    assert lora["gradients"] == full["gradients"] - matrices + low_rank
    assert lora["parameters"] == full["parameters"] + low_rank and lora["optimizer"] == 2 * lora["gradients"] + 8


def test_flops_leave_out_the_gradients_of_what_is_frozen():
    spec = random_model().spec
    objective = make_objective()
    layers = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48)
    low_rank = 2 * 4 * (64 + 48 + 48 + 64 + 3 * 80)
    full, lora = (step_flops(spec, objective, 3, 24, how) for how in (None, LORA))
    assert full - lora == 3 * 48 * (2 * layers - 6 * low_rank)
