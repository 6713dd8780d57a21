"""A frozen teacher: what it sees, what the loss is, that it stays outside of the run, and what is refused."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edlm_jax.benchmarks.training import time_train_step
from edlm_jax.diffusion import example_keys
from edlm_jax.errors import InputError
from edlm_jax.models.spec import Conversion
from edlm_jax.pretrained import load_pretrained, save_pretrained
from edlm_jax.training.checkpoint import latest_step
from edlm_jax.training.fitting import lower_step
from edlm_jax.training.initial import planned_spec, read_spec
from edlm_jax.training.run import Run
from edlm_jax.training.teacher import find_teacher
from edlm_jax.training.train import train
from tests.seeds import fresh_rng
from tests.training.conftest import make_config
from tests.training.test_train import assert_same, losses, params, raise_sigterm_in_step
from tests.training.tiny import MASK_ID, random_batch, random_model

SMALL = Conversion(MASK_ID, 4)


@pytest.fixture(scope="session")
def save_teacher(corpus, tmp_path_factory):
    """(conversion, changes of its shape) -> the directory of another model."""

    def save(conversion=SMALL, **changes):
        directory = tmp_path_factory.mktemp("teacher") / "small"
        model = random_model(source=str(corpus), intermediate_size=64, **changes)
        model.spec = dataclasses.replace(model.spec, conversion=conversion)
        save_pretrained(model, directory)
        return directory

    return save


@pytest.fixture(scope="session")
def teacher(save_teacher):
    """One in blocks of 4."""
    return save_teacher()


def taught_config(corpus, checkpoint, teacher, **objective):
    """Blocks of 8, learned from it as much as from the text."""
    c = make_config(corpus, checkpoint)
    c.objective.update(block_length=8, teacher=str(teacher), teacher_weight=0.5, **objective)
    return c


SHIFTED = {"alignment": "shifted", "noisy_length": 16}
LEARNED = {
    "every block": ({}, 1),
    "blocks dealt, pieces": ({"noisy_length": 32}, 2),
    "shifted, blocks dealt": (SHIFTED, 1),
    "views": ({"noise": "complementary"}, 2),
}


@pytest.mark.parametrize("name", LEARNED)
def test_the_loss_is_the_divergence_of_two_models_of_all_logits(name, corpus, checkpoint, save_teacher):
    """Both models' logits as a whole, the teacher's row put together here, and the formula in float64."""
    objective, pieces = LEARNED[name]
    conversion = dataclasses.replace(SMALL, alignment=objective.get("alignment", "same_position"))
    config = taught_config(corpus, checkpoint, save_teacher(conversion), **objective)
    run, L, rows = Run.of(config), 24, 4
    spec, _ = read_spec(run.start)
    ours, found = run.objective.of_model(spec), find_teacher(run, spec, run.make_mesh(jax.devices()[:1]))
    batch = random_batch(rows, L, documents=(11, 9))
    batch["loss_mask"] *= 1 + (batch["positions"] > 7).astype(np.int32)  # what fills a block
    corruption = ours.corrupt(example_keys(jax.random.key(5), rows), batch)
    state, weights = load_pretrained(checkpoint, "float32"), found.weights()
    taught = found.look(weights, {}, batch, corruption, pieces)
    (term,) = (term for term in ours.terms if term.name == "teacher")

    M = corruption.noisy_BM.shape[1]
    copies_BM = np.arange(M)[None] % L if corruption.copies_BM is None else np.asarray(corruption.copies_BM)
    copies_BM = np.broadcast_to(copies_BM, (rows, M))
    shifted, wanted_BM = ours.layout.shifted, np.asarray(corruption.masked_BM)
    small = dataclasses.replace(found.objective, layout=dataclasses.replace(ours.layout, block_length=4))
    teacher_BTV, student_BTV = (
        model.logits(objective.hidden(model, batch, corruption))
        for model, objective in ((load_pretrained(found.path, "float32"), small), (state, ours))
    )

    def column(row, j, C):
        """Where the token of a noisy column is predicted."""
        if not shifted:
            return j
        return j - 1 if j % C else M + copies_BM[row, j] - 1

    expected, count = 0.0, 0
    for row in range(rows):
        for j in range(M):
            token = copies_BM[row, j]
            first = token == 0 or batch["segment_ids"][row, token - 1] != batch["segment_ids"][row, token]
            if not wanted_BM[row, j] or batch["loss_mask"][row, token] != 1 or (shifted and first):
                continue
            p = np.float64(teacher_BTV[row, column(row, j, 4)])
            q = np.float64(student_BTV[row, column(row, j, 8)])
            best = np.argsort(-p)[:16]
            p, q = p[best] - np.log(np.exp(p[best]).sum()), q - np.log(np.exp(q).sum())
            expected, count = expected + (np.exp(p) * (p - q[best])).sum(), count + 1
    sums, counts = ours.sums(state, batch, taught), ours.weights(batch, corruption)
    assert count and counts[term.name] == count
    np.testing.assert_allclose(sums[term.name]["loss"], expected, rtol=1e-4)


def test_the_gradient_is_that_of_the_formula_in_float64(corpus, checkpoint, teacher):
    """By the student's parameters alone, with the teacher's best tokens as constants."""
    run = Run.of(taught_config(corpus, checkpoint, teacher))
    spec, _ = read_spec(run.start)
    ours, found = run.objective.of_model(spec), find_teacher(run, spec, run.make_mesh(jax.devices()[:1]))
    batch = random_batch(2, 16, documents=(15,))
    corruption = ours.corrupt(example_keys(jax.random.key(5), 2), batch)
    corruption = found.look(found.weights(), {}, batch, corruption)
    streams = ours.streams(batch, corruption)
    (term,) = (term for term in ours.terms if term.name == "teacher")
    model = load_pretrained(checkpoint, "float32")
    x_BTD = jnp.asarray(fresh_rng().normal(size=(2, 32, 32)), jnp.float32)
    slope = jax.grad(lambda x: term.sums(streams, model, x)["loss"])(x_BTD)
    logits_BMK, tokens_BMK = map(np.asarray, corruption.taught)
    with jax.enable_x64(True):
        p_BMK = jax.nn.softmax(jnp.asarray(logits_BMK, jnp.float64))
        head_DV, wanted_BM = jnp.asarray(model.embedding_VD[...].T, jnp.float64), np.asarray(term.wanted(streams))

        def naive(x_BTD):
            log_q = jnp.take_along_axis(jax.nn.log_softmax(x_BTD[:, :16] @ head_DV), tokens_BMK, axis=-1)
            return jnp.where(wanted_BM[..., None], p_BMK * (jnp.log(p_BMK) - log_q), 0).sum()

        exact = jax.grad(naive)(jnp.asarray(x_BTD, jnp.float64))
    assert np.abs(exact).max() > 0.01
    np.testing.assert_allclose(slope, exact, atol=1e-5)


@pytest.fixture(scope="module")
def finished(corpus, checkpoint, teacher, tmp_path_factory):
    """A run that nothing interrupted: (work directory, summary)."""
    workdir = tmp_path_factory.mktemp("taught")
    return workdir, train(Run.of(taught_config(corpus, checkpoint, teacher)), workdir)


def test_a_run_reports_the_teachers_loss_and_keeps_nothing_of_it(finished, config, tmp_path):
    workdir, summary = finished
    assert 0 < summary["teacher_loss"] < 20 and summary["eval_teacher_loss"] > 0
    assert summary["loss"] == pytest.approx(summary["diffusion_objective"] + 0.5 * summary["teacher_loss"], rel=1e-5)
    config.objective.block_length, config.steps = 8, 3
    config.checkpoint.every = 0
    train(Run.of(config), tmp_path)
    for item in ("params", "optimizer"):
        ours, theirs = (json.loads((d / f"checkpoints/3/{item}/_METADATA").read_text()) for d in (workdir, tmp_path))
        assert ours["tree_metadata"].keys() == theirs["tree_metadata"].keys()


def test_interrupted_equals_uninterrupted_bitwise(finished, corpus, checkpoint, teacher, tmp_path, monkeypatch):
    raise_sigterm_in_step(monkeypatch, 3)
    config = taught_config(corpus, checkpoint, teacher)
    assert not train(Run.of(config), tmp_path)["completed"]
    monkeypatch.undo()
    assert train(Run.of(config), tmp_path)["completed"]
    assert_same(params(tmp_path), params(finished[0]))


def test_a_run_goes_on_with_the_teacher_that_it_began_with(corpus, checkpoint, save_teacher, tmp_path):
    """The same path is not enough: a teacher that was trained on may have been exported to it."""
    place = save_teacher()
    config = taught_config(corpus, checkpoint, place)
    config.steps = 1
    train(Run.of(config), tmp_path / "run")
    other = load_pretrained(place, dtype="float32")
    other.final_norm_D[...] += 1.0
    save_pretrained(other, tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", place)
    config.steps = 2
    with pytest.raises(InputError, match="since whose beginning config.objective.teacher changed"):
        train(Run.of(config), tmp_path / "run")
    assert latest_step(tmp_path / "run") == 1


def test_meshes_and_micro_batches_learn_the_same(finished, corpus, checkpoint, teacher, tmp_path):
    config = taught_config(corpus, checkpoint, teacher)
    config.mesh.update(data=1, fsdp=2, tensor=2, context=2)
    config.optimizer.accumulation = 2
    train(Run.of(config), tmp_path)
    ours, theirs = losses(tmp_path), losses(finished[0])
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=2e-4)


def test_a_base_that_is_the_teacher_is_held_once_and_says_the_same(corpus, save_teacher, tmp_path):
    base = save_teacher()
    config = taught_config(corpus, base, base)
    config.lora.rank, config.steps, config.checkpoint.every = 2, 3, 0
    run = Run.of(config)
    found = find_teacher(run, read_spec(run.start)[0], run.make_mesh())
    assert "q_DNH" not in found.weights()["layers"] and "embedding_VD" in found.weights()
    train(run, tmp_path / "shared")
    config.objective.teacher = str(base / ".")
    config.objective.teacher += "/"  # the same directory, another name: another copy
    run = Run.of(config)
    assert "q_DNH" in find_teacher(run, read_spec(run.start)[0], run.make_mesh()).weights()["layers"]
    train(run, tmp_path / "copied")
    assert_same(params(tmp_path / "shared"), params(tmp_path / "copied"))


def test_of_a_base_that_stays_whole_nothing_is_held_beside_it(corpus, save_teacher, tmp_path):
    base = save_teacher()
    config = taught_config(corpus, base, base)
    config.lora.update(rank=2, columns="noisy")
    config.init.mask_embedding, config.steps, config.checkpoint.every = "keep", 3, 0
    run = Run.of(config)
    assert not jax.tree.leaves(find_teacher(run, read_spec(run.start)[0], run.make_mesh()).weights())
    train(run, tmp_path / "shared")
    config.objective.teacher = f"{base}/"  # another name: a copy
    train(Run.of(config), tmp_path / "copied")
    assert losses(tmp_path / "shared") == losses(tmp_path / "copied")


def test_a_step_is_compiled_ahead_and_timed_with_it(config, corpus, checkpoint, teacher):
    config.objective.block_length = 8
    runs = Run.of(config), Run.of(taught_config(corpus, checkpoint, teacher))
    lowered = [lower_step(run, planned_spec(run.start), run.make_mesh()) for run in runs]
    alone, both = (len(jax.tree.leaves(step.args_info)) for step in lowered)
    assert both - alone == len(jax.tree.leaves(nnx.state(load_pretrained(teacher))))
    found = time_train_step(runs[1], 1)
    assert np.isfinite(found["loss"]) and found["seconds_per_step"]["median"] > 0


def test_what_is_no_teacher_is_refused_in_one_line(corpus, checkpoint, save_teacher, teacher, tmp_path):
    def refuses(match, path=teacher, **objective):
        config = taught_config(corpus, checkpoint, path, **objective)
        with pytest.raises(InputError, match=match) as error:
            train(Run.of(config), tmp_path / "none")
        assert "\n" not in str(error.value) and not (tmp_path / "none").exists()

    of = lambda **changes: save_teacher(dataclasses.replace(SMALL, **changes))  # noqa: E731
    refuses("neither a directory nor a hub id", tmp_path / "nowhere/to/be")
    refuses("is an AR model: it knows nothing of noise", checkpoint)
    refuses("has a vocabulary of 101, the model one of 97", save_teacher(vocab_size=101))
    refuses("knows token 91 as mask, here it is 92", of(mask_token_id=91))
    refuses("was trained in blocks of 4, of which blocks of 2 are not whole ones", curriculum=((2, 3),))
    refuses("was trained in blocks of 16", of(block_length=16))
    refuses("converted with alignment 'shifted', here it is 'same_position'", of(alignment="shifted"))
    refuses("converted with noise 'uniform_tokens', here it is 'masks'", of(noise="uniform_tokens"))
    refuses("was trained to look both ways", of(pattern="bidirectional"))
    refuses("adapters of noisy columns", of(adapted="noisy", pattern="causal_block", alignment="shifted"))
    refuses("would see other noise", noise="own_guesses")
    refuses("speaks of noise, and pattern='causal' has none", pattern="causal")
    config = taught_config(corpus, checkpoint, "")
    with pytest.raises(InputError, match="need each other: set both or neither"):
        Run.of(config)
