"""Held-out loss and weight drift against the plain computation."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edlm_jax.commands.main import main
from edlm_jax.data.pipeline import EvalBatches
from edlm_jax.data.stdlib import StdlibSource
from edlm_jax.diagnosis import prediction
from edlm_jax.diagnosis.drift import weight_drift
from edlm_jax.diffusion.masks import EvenCounts
from edlm_jax.diffusion.streams import AUTOREGRESSIVE, find_layout
from edlm_jax.diffusion.terms import MaskedTokens
from edlm_jax.errors import InputError
from edlm_jax.evaluation import heldout
from edlm_jax.evaluation.heldout import heldout_loss, heldout_rows
from edlm_jax.models import Conversion, ModelSpec, Transformer
from edlm_jax.pretrained import load_pretrained, load_tokenizer
from edlm_jax.training.heldout import heldout_noise
from edlm_jax.training.objective import Objective
from tests.conftest import TINY
from tests.seeds import fresh_rng

SOURCE = dict(kind="tasks", kinds=("sort", "sums"), split="test", seed=9, size=40)


def test_heldout_ar_loss_is_the_mean_over_all_supervised_tokens(tiny_ar_dir):
    model, tokenizer = load_pretrained(tiny_ar_dir, "float32"), load_tokenizer(tiny_ar_dir)
    data = heldout_rows(model.spec, SOURCE, batch_size=3)
    total, count = 0.0, 0
    for batch in EvalBatches(data, tokenizer):
        logits_BTV = model(
            jnp.asarray(batch["tokens"]),
            positions_BT=jnp.asarray(batch["positions"]),
            segment_ids_BT=jnp.asarray(batch["segment_ids"]),
        )
        log_probs_BTV = np.asarray(jax.nn.log_softmax(logits_BTV))
        for row, column in np.argwhere(batch["loss_mask"] > 0):
            if column and batch["segment_ids"][row, column] == batch["segment_ids"][row, column - 1]:
                total -= log_probs_BTV[row, column - 1, batch["tokens"][row, column]]
                count += 1
    assert count > 300
    assert heldout_loss(model, data, tokenizer, AUTOREGRESSIVE) == pytest.approx(total / count, rel=1e-5)
    # Beside a conversion the same documents are packed to its grid: AR has not to predict what fills last blocks.
    data = dataclasses.replace(data, block_length=4)
    assert heldout_loss(model, data, tokenizer, AUTOREGRESSIVE) == pytest.approx(total / count, rel=1e-5)


def test_the_diffusion_bound_of_a_model_that_knows_nothing_is_log_vocabulary(tiny_converted_dir):
    model, tokenizer = load_pretrained(tiny_converted_dir, "float32"), load_tokenizer(tiny_converted_dir)
    data = heldout_rows(model.spec, SOURCE | {"size": 800}, batch_size=3)
    assert (data.block_length, data.length) == (4, 512)
    model.embedding_VD[...] = jnp.zeros_like(model.embedding_VD[...])  # tied: all logits are 0
    # sum(ce / t) over all that is learned: its mean over the noise is ln V for each exactly, the sample's is near
    learned, documents = 0, 0
    for batch in EvalBatches(data, tokenizer):
        learned, documents = learned + (batch["loss_mask"] > 0).sum(), documents + (batch["loss_mask"] == 1).sum()
    expected = np.log(259) * learned / documents
    assert learned > 1.1 * documents
    loss = heldout_loss(model, data, tokenizer, find_layout("clean_context", 4))
    assert loss == pytest.approx(expected, rel=0.05)
    views = dataclasses.replace(find_layout("clean_context", 4), noisy_length=64, views=2)
    assert loss == heldout_loss(model, data, tokenizer, views)  # the views of training are not those of the bound
    model.embedding_VD[...] = 20 * jax.random.normal(jax.random.key(0), model.embedding_VD.shape)
    layouts = [find_layout(pattern, 4) for pattern in ("clean_context", "block_causal")]
    losses = [heldout_loss(model, data, tokenizer, layout) for layout in layouts]
    assert losses[0] == losses[1] != loss  # blocks are decoded after clean ones, whatever streams they were trained on


@pytest.mark.parametrize("grid", ["response", "position"])
def test_heldout_documents_are_packed_on_the_models_grid(grid, tiny_converted_dir, monkeypatch):
    model, tokenizer = load_pretrained(tiny_converted_dir, "float32"), load_tokenizer(tiny_converted_dir)
    model.spec = dataclasses.replace(model.spec, conversion=dataclasses.replace(model.spec.conversion, grid=grid))
    seen = []
    for measure, computed in ((heldout, "nats"), (prediction, "_tally")):

        def keep(*arguments):
            seen.append(next(argument for argument in arguments if isinstance(argument, dict)))
            raise StopIteration

        monkeypatch.setattr(measure, computed, keep)
        call = heldout_loss if measure is heldout else prediction.predict
        with pytest.raises(StopIteration):
            call(model, heldout_rows(model.spec, SOURCE, batch_size=3), tokenizer, model.spec.conversion.layout)
    assert len(seen) == 2
    for batch in seen:
        learned = np.diff(batch["loss_mask"] > 0, prepend=0) > 0
        begins = (batch["positions"] == 0) & (batch["segment_ids"] > 0)
        first = begins if grid == "position" else learned  # where a document's blocks are counted from
        other = learned if grid == "position" else begins
        assert not (np.nonzero(first)[1] % 4).any() and (np.nonzero(other)[1] % 4).any()


def test_a_held_out_set_has_the_rows_that_are_asked_for(tiny_converted_dir, capsys):
    model, tokenizer = load_pretrained(tiny_converted_dir, "float32"), load_tokenizer(tiny_converted_dir)
    shapes = {(rows, size): (1, rows) for rows, size in ((3, 32), (32, 32))}
    for (rows, size), shape in (shapes | {(512, 32): (16, 32), (40, 32): (2, 20), (41, 32): (2, 21)}).items():
        data = heldout_rows(model.spec, SOURCE, batch_size=size, rows=rows)
        assert (data.eval_batches, data.batch_size) == shape
    long = dataclasses.replace(model.spec, max_length=2048, conversion=Conversion(258, 600))
    assert [heldout_rows(spec, SOURCE, batch_size=1).length for spec in (model.spec, long)] == [512, 600]
    data = heldout_rows(model.spec, dict(kind="stdlib", split="test"), batch_size=2, rows=2)
    argv = ["evaluate", f"--model={tiny_converted_dir}", "--task=heldout", "--rows=2", "--dtype=float32", "--json"]
    loss = heldout_loss(model, data, tokenizer, model.spec.conversion.layout)
    for more in ([], ["--tensor=2"]):  # four groups of devices share no two rows out
        assert main([*argv, *more]) == 0
        measured = json.loads(capsys.readouterr().out)
        assert measured["heldout_loss"]["diffusion"] == pytest.approx(loss, rel=1e-6)
    data = measured["heldout_data"]
    assert data["rows"] == 2 and data["tokens"] > 900 and data["skipped"] == 0
    assert data["of_documents"] == len(StdlibSource("test")) >= data["split"] > 0


@pytest.mark.parametrize("pattern, unit", [("clean_context", 4), ("block_causal", 4), ("bidirectional", 24)])
def test_the_noise_of_the_bound_hides_k_of_what_is_decoded_together(pattern, unit):
    B, L = 6, 24
    loss_mask_BL = fresh_rng().integers(0, 3, (B, L))
    tokens_BL = np.broadcast_to(np.arange(L), (B, L))
    batch = dict(tokens=tokens_BL, loss_mask=loss_mask_BL, segment_ids=np.ones((B, L), int))
    objective = Objective(find_layout(pattern, 4).as_decoded(), EvenCounts(99), (MaskedTokens(),))
    noise = heldout_noise(objective, batch, 3)
    noisy_BL, masked_BL, level_BL = (np.array(x) for x in (noise.noisy_BM, noise.masked_BM, noise.noise_level_BM))
    np.testing.assert_array_equal(noisy_BL, np.where(masked_BL, 99, tokens_BL))
    assert not (masked_BL & (loss_mask_BL == 0)).any()
    units = (x.reshape(-1, unit) for x in (masked_BL, level_BL, loss_mask_BL > 0))
    for masked, level, learned in zip(*units, strict=True):
        if learned.any():  # k is at least 1
            np.testing.assert_allclose(level, masked.sum() / learned.sum())


def test_drift_is_per_layer_and_per_group():
    spec = ModelSpec.from_hf(TINY)
    before, after = (Transformer(spec, rngs=nnx.Rngs(7)) for _ in range(2))
    for name in ("gate_DF", "up_DF", "down_FD"):
        weights = getattr(after.layers, name)
        weights[...] = weights[...].at[1].multiply(1.25)
    query = after.layers.q_DNH
    query[...] = query[...].at[0].multiply(-1.0)
    drift = weight_drift(before, after)
    assert drift["ffn"]["relative"] == pytest.approx([0.0, 0.25], abs=1e-6)
    assert drift["ffn"]["cosine"] == pytest.approx([1.0, 1.0], abs=1e-6)
    q, rest = (sum(float(jnp.sum(getattr(before.layers, n)[...][0] ** 2)) for n in names) for names in (
        ("q_DNH",), ("k_DKH", "v_DKH", "o_NHD")
    ))  # fmt: skip
    assert drift["attention"]["relative"] == pytest.approx([2 * (q / (q + rest)) ** 0.5, 0.0], abs=1e-5)
    assert drift["attention"]["cosine"] == pytest.approx([(rest - q) / (q + rest), 1.0], abs=1e-5)


def test_drift_between_models_of_different_shape_is_refused():
    spec = ModelSpec.from_hf(TINY)
    small, large = spec, dataclasses.replace(spec, ffn_width=56)
    with pytest.raises(InputError, match="one shape"):
        weight_drift(*(Transformer(s, rngs=nnx.Rngs(0)) for s in (small, large)))
