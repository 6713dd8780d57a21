"""Runs that train adapters of noisy columns alone: the base stays as it was read, bit for bit, and has no moments."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from edlm_jax.attention import Causal
from edlm_jax.commands.conversion import convert
from edlm_jax.commands.lossless_job import DrafterJob
from edlm_jax.errors import InputError
from edlm_jax.models.lora import ADAPTER_NAMES, ADAPTERS
from edlm_jax.parallel.sharding import letters
from edlm_jax.pretrained import load_pretrained, save_pretrained
from edlm_jax.training.checkpoint import load_trained
from edlm_jax.training.initial import abstract_state, initial_params, read_spec
from edlm_jax.training.metrics import step_flops
from edlm_jax.training.run import Run
from edlm_jax.training.train import train
from tests.training.conftest import make_config
from tests.training.test_train import assert_same, params, raise_sigterm_in_step


def gated_config(corpus, checkpoint):
    """Drafts of 4 from uniform tokens, two micro-batches a step, everything computed again."""
    c = make_config(corpus, checkpoint)
    c.remat, c.data.batch_size, c.optimizer.accumulation = "full", 16, 2
    c.lora.update(rank=4, columns="noisy", targets=("q_proj", "o_proj", "up_proj"))
    c.objective.update(pattern="causal_block", alignment="shifted", noise="uniform_tokens", curriculum=((2, 2),))
    c.objective.update(diffusion_weight=0.0, total_variation_weight=1.0)
    return c


@pytest.fixture(scope="module")
def finished(corpus, checkpoint, tmp_path_factory):
    """The work directory of a run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("gated")
    train(Run.of(gated_config(corpus, checkpoint)), workdir)
    return workdir


def test_the_base_is_untouched_and_ar_gives_its_own_logits(finished, checkpoint):
    before, after = load_pretrained(checkpoint, "float32"), load_trained(finished)
    base, both = (nnx.to_pure_dict(nnx.state(model, nnx.Param)) for model in (before, after))
    adapted = {name: both["layers"].pop(name) for name in set(both["layers"]) & ADAPTER_NAMES}
    assert_same(both, base)
    assert set(adapted) == {name for matrix in ("q_DNH", "o_NHD", "up_DF") for name in ADAPTERS[matrix]}
    assert all(np.any(adapted[name]) for name in adapted)  # each B has left zero
    measured = (finished / "metrics.jsonl").read_text()
    assert "eval_total_variation_loss" in measured and "drift" not in measured and "bound" not in measured
    tokens_BT = np.arange(24).reshape(2, 12)
    np.testing.assert_array_equal(*(model(tokens_BT, pattern=Causal()) for model in (before, after)))


def test_interrupted_equals_uninterrupted_bitwise(finished, corpus, checkpoint, tmp_path, monkeypatch):
    raise_sigterm_in_step(monkeypatch, 3)
    assert not train(Run.of(gated_config(corpus, checkpoint)), tmp_path)["completed"]
    monkeypatch.undo()
    assert train(Run.of(gated_config(corpus, checkpoint)), tmp_path)["completed"]
    assert_same(params(tmp_path), params(finished))


def test_no_master_copy_and_no_moments_of_the_base(corpus, checkpoint):
    c = gated_config(corpus, checkpoint)
    c.dtype = "bfloat16"
    run = Run.of(c)
    _, state = abstract_state(run.start, run.optimizer, read_spec(run.start)[0], run.make_mesh())
    wide = {path[-1].key for path, x in jax.tree.leaves_with_path(state.params) if x.dtype == np.float32}
    moments = {path[-1].key for path, x in jax.tree.leaves_with_path(state.opt_state) if x.ndim > 1}
    assert wide == moments and wide < ADAPTER_NAMES and len(wide) == 6


def test_flops_are_about_half_of_full_training(corpus, checkpoint):
    run = Run.of(gated_config(corpus, checkpoint))
    spec, _ = read_spec(run.start)
    objective = run.objective.of_model(spec)
    full, gated = (step_flops(spec, objective, 3, 24, lora) for lora in (None, run.start.lora))
    layers, head, pairs = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48), 32 * 97, 24 * 25 // 2
    low_rank = 2 * 4 * (64 + 64 + 80)
    saved = 2 * layers * 48 + 2 * layers * 24 + 2 * head * 24 + 8 * 2 * 32 * pairs
    assert full - gated == 3 * (saved - 6 * low_rank * 24)


def test_kept_adapters_are_trained_further(finished, corpus, checkpoint, tmp_path):
    drafter, c = tmp_path / "drafter", gated_config(corpus, checkpoint)
    save_pretrained(load_trained(finished), drafter)
    c.init.update(path=str(drafter), adapters="keep")
    run = Run.of(c)
    starts = run.start, replace(run.start, adapters="new")
    kept, new = (initial_params(start, read_spec(start)[0], run.make_mesh())["layers"] for start in starts)
    assert_same(kept, params(finished)["layers"])
    assert not any(np.any(new[name]) for name in ADAPTER_NAMES & set(new) if letters(name)[0] == "R")  # each B
    rounded = replace(run.start, dtype="bfloat16")
    kept = initial_params(rounded, read_spec(rounded)[0], run.make_mesh())["layers"]
    adapters = ADAPTER_NAMES & set(kept)  # which are trained in float32, as they lie there
    assert_same(*({name: layers[name] for name in adapters} for layers in (kept, params(finished)["layers"])))
    c.lora.alpha = 16.0
    with pytest.raises(InputError, match="needs the config.lora of the adapters in .*drafter: rank=4, alpha=32.0, col"):
        train(Run.of(c), tmp_path / "run")
    c.init.path = str(checkpoint)
    with pytest.raises(InputError, match="has no adapters of noisy columns beside it"):
        train(Run.of(c), tmp_path / "run")


def test_what_lossless_exports_are_the_adapters_that_it_trained(finished, tmp_path):
    """Also where older ones lie beside the model that it began with."""
    older = load_trained(finished)
    nnx.update(older, jax.tree.map(lambda x: 2 * x, nnx.state(older, lambda path, _: path[-1] in ADAPTER_NAMES)))
    save_pretrained(older, tmp_path / "ar")
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "drafter").symlink_to(finished)
    DrafterJob(tmp_path / "ar", tmp_path / "job", "", [], 1.0).export(tmp_path / "model")
    exported = nnx.to_pure_dict(nnx.state(load_pretrained(tmp_path / "model", "float32")))["layers"]
    trained = params(finished)["layers"]
    rounded = {name: x.astype("bfloat16").astype("float32") for name, x in trained.items() if name in ADAPTER_NAMES}
    assert_same(exported, trained | rounded)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"objective.pattern": "block_causal"}, "needs a clean stream .*'block_causal' has not; choose"),
        ({"lora.rank": 0}, "needs config.lora.rank > 0"),
        ({"lora.targets": ("q_proj", "head")}, "config.lora.targets: 'head' is unknown; choose among q_proj"),
        ({"init.mask_embedding": "mean"}, "leaves embeddings as they are"),
        ({"lora.columns": "all", "init.adapters": "keep"}, "init.adapters='keep' needs config.lora.columns='noisy'"),
        ({"lora.columns": "some"}, "config.lora.columns='some' is unknown"),
    ],
    ids=str,
)
def test_what_would_not_stay_the_ar_model_is_refused(corpus, checkpoint, change, reason):
    c = gated_config(corpus, checkpoint)
    c.update_from_flattened_dict(change)
    with pytest.raises(InputError, match=reason):
        Run.of(c)


def test_a_drafter_is_no_conversion(corpus, checkpoint, tmp_path):
    with pytest.raises(InputError, match="converts nothing: use edlm train"):
        convert(Run.of(gated_config(corpus, checkpoint)), tmp_path, name="gated")
