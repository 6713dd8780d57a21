"""Diagnostics against plain computations, and the command that gathers them."""

import functools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from edlm_jax.commands.main import main
from edlm_jax.data.pipeline import EvalBatches
from edlm_jax.diagnosis import gradient_variance as variance_module
from edlm_jax.diagnosis.gradient_variance import WAYS, gradient_variance, under
from edlm_jax.diagnosis.order import decode_order
from edlm_jax.diagnosis.prediction import predict
from edlm_jax.diffusion import example_keys
from edlm_jax.diffusion.streams import AUTOREGRESSIVE
from edlm_jax.evaluation.heldout import heldout_rows
from edlm_jax.pretrained import load_pretrained, load_tokenizer, save_pretrained
from tests.training.tiny import MASK_ID, make_objective, random_batch

MASK = 258  # of the tiny models
SOURCE = dict(kind="tasks", kinds=("sort", "sums"), split="test", seed=9, size=20)


def test_order_of_pairs_inside_blocks():
    # blocks of 3: [1 2 2] has two pairs in order and a tie, [5 4] one reversed; a pair across blocks does not count
    order = decode_order([[1, 2, 2, 5, 4]], 3)
    assert [order[name] for name in ("left_first", "together", "right_first")] == [2 / 4, 1 / 4, 1 / 4]
    assert order["kendall_tau"] == pytest.approx((2 - 1) / (4 * 3) ** 0.5)
    assert order["forward_by_position"] == [0.5, 0.5, 1.0]
    assert decode_order([[1, 2, 3, 4]], 4)["kendall_tau"] == 1 == -decode_order([[4, 3, 2, 1]], 4)["kendall_tau"]
    assert decode_order([[7, 7]], 2)["kendall_tau"] == 0
    moved = decode_order([[1, 2, 2, 5, 4]], 3, offsets=[2])  # the first token ends a block
    assert moved["forward_by_position"] == [0.0, 0.0, 1.5] and moved["left_first"] == 2 / 3


def test_ar_predictions_are_those_of_the_model(tiny_ar_dir):
    model, tokenizer = load_pretrained(tiny_ar_dir, "float32"), load_tokenizer(tiny_ar_dir)
    data = replace(heldout_rows(model.spec, SOURCE, batch_size=3), block_length=4)
    found = predict(model, data, tokenizer, AUTOREGRESSIVE)
    loss_4, tokens_4, confidence, right = np.zeros(4), np.zeros(4), [], []
    for batch in EvalBatches(data, tokenizer):
        fields = {"positions_BT": batch["positions"], "segment_ids_BT": batch["segment_ids"]}
        logits_BTV = model(jnp.asarray(batch["tokens"]), **jax.tree.map(jnp.asarray, fields))
        log_p_BTV = np.asarray(jax.nn.log_softmax(logits_BTV))
        for row, column in np.argwhere(batch["loss_mask"] == 1):
            if column and batch["segment_ids"][row, column] == batch["segment_ids"][row, column - 1]:
                log_p_V, token = log_p_BTV[row, column - 1], batch["tokens"][row, column]
                loss_4[column % 4] -= log_p_V[token]
                tokens_4[column % 4] += 1
                confidence.append(np.exp(log_p_V.max()))
                right.append(log_p_V.argmax() == token)
    np.testing.assert_allclose(found["loss_by_position"], loss_4 / tokens_4, rtol=1e-4)
    bins = np.minimum((np.array(confidence) * 10).astype(int), 9)
    error = sum(abs(sum(confidence[i] - right[i] for i in np.flatnonzero(bins == b))) for b in range(10))
    assert found["ece"] == pytest.approx(error / len(right), abs=1e-5)
    assert sum(entry["predictions"] for entry in found["bins"]) == len(right)


def test_diffusion_predictions_of_a_model_that_knows_nothing(tiny_converted_dir):
    model, tokenizer = load_pretrained(tiny_converted_dir, "float32"), load_tokenizer(tiny_converted_dir)
    model.embedding_VD[...] = jnp.zeros_like(model.embedding_VD[...])  # tied: all logits are 0
    data = heldout_rows(model.spec, SOURCE, batch_size=3)
    found = predict(model, data, tokenizer, model.spec.conversion.layout)
    assert len(found["loss_by_position"]) == 4
    assert found["loss_by_position"] == pytest.approx([np.log(258)] * 4, rel=0.3)  # n / k is 1 in expectation
    assert found["bins"][0]["confidence"] == pytest.approx(1 / 258, rel=1e-4) and len(found["bins"]) == 1


def as_mars(model, alignment="shifted"):
    changes = dict(pattern="causal_block", prefill="causal", alignment=alignment)
    model.spec = replace(model.spec, conversion=replace(model.spec.conversion, **changes))
    return model


@pytest.mark.parametrize("alignment", ["shifted", "same_position"])
def test_predictions_of_mars_are_those_of_masks_behind_clean_text(tiny_converted_dir, alignment):
    model, tokenizer = (
        as_mars(load_pretrained(tiny_converted_dir, "float32"), alignment),
        load_tokenizer(tiny_converted_dir),
    )
    model.embedding_VD[...] = 20 * jax.random.normal(jax.random.key(0), model.embedding_VD.shape)
    data = replace(heldout_rows(model.spec, SOURCE, batch_size=1), eval_batches=1)
    (batch,) = EvalBatches(data, tokenizer)
    tokens_L, segments_L, loss_mask_L = (batch[name][0] for name in ("tokens", "segment_ids", "loss_mask"))
    graphdef, state = nnx.split(model)
    forward = jax.jit(lambda tokens_1L: nnx.merge(graphdef, state)(tokens_1L))  # causal throughout
    loss_4, count_4, right = np.zeros(4), np.zeros(4), []
    for column in np.flatnonzero(loss_mask_L == 1):
        document = np.flatnonzero(segments_L == segments_L[column])
        clean = document[document < column // 4 * 4]
        row_1L = np.zeros((1, data.length), np.int32)
        row_1L[0, : len(clean)] = tokens_L[clean]
        row_1L[0, len(clean) : len(clean) + 4] = MASK
        logits_V = np.array(forward(row_1L)[0, len(clean) + column % 4 - (alignment == "shifted")])
        logits_V[MASK] = -np.inf
        loss_4[column % 4] += jax.nn.logsumexp(logits_V) - logits_V[tokens_L[column]]
        count_4[column % 4] += 1
        right.append(logits_V.argmax() == tokens_L[column])
    found = predict(model, data, tokenizer, model.spec.conversion.layout)
    np.testing.assert_allclose(found["loss_by_position"], loss_4 / count_4, rtol=1e-4)
    assert sum(entry["predictions"] * entry["accuracy"] for entry in found["bins"]) == pytest.approx(sum(right))


class Line(nnx.Module):
    """The loss of a masked token is the one weight itself: the gradient is the mean of 1 / t over masked tokens."""

    def __init__(self, stored="float32"):
        self.weight_D = nnx.Param(jnp.ones(1, stored))

    def hidden(self, tokens_BT, **_):
        return jnp.broadcast_to(self.weight_D[...], (*tokens_BT.shape, 1))

    def cross_entropy(self, x_BTD, targets_BT, supervised_BT):
        return jnp.where(supervised_BT, x_BTD[..., 0], 0.0)


OBJECTIVE = make_objective()


@functools.partial(jax.jit, static_argnums=2)
def draw(key, batch, way):
    return under(OBJECTIVE, way).corrupt(example_keys(key, len(batch["tokens"])), batch)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_draws_masks_of_the_right_rate(way):
    rows = 256
    batch = random_batch(rows, 32, documents=(20, 12))
    corruption = draw(jax.random.key(3), batch, way)
    corruptible_BM = np.asarray(corruption.copied(jnp.asarray(batch["loss_mask"] > 0)))
    masked_BM, level_BM = np.asarray(corruption.masked_BM), np.asarray(corruption.noise_level_BM)
    assert not masked_BM[~corruptible_BM].any()
    np.testing.assert_array_equal(np.asarray(corruption.noisy_BM)[masked_BM], MASK_ID)
    assert (masked_BM - level_BM)[corruptible_BM].mean() == pytest.approx(0, abs=0.03)  # four standard errors
    levels_BN = level_BM[:, ::4]
    assert (levels_BN == levels_BN[:, :1]).all() == (way == "per sequence")
    if way == "complementary":
        first, second = np.split(masked_BM, 2, axis=1)
        np.testing.assert_array_equal(first ^ second, batch["loss_mask"] > 0)
    if way == "stratified":
        for row, levels_N in zip(batch["loss_mask"].reshape(rows, 8, 4).any(axis=2), levels_BN, strict=True):
            parts = np.floor((levels_N[row] - 1e-3) / 0.998 * row.sum()).astype(int)
            assert sorted(parts) == list(range(row.sum()))


def test_variance_is_that_of_the_draws():
    batch = random_batch(4, 16, documents=(16,))
    batch["loss_mask"][:] = 1
    model = Line()
    programs = variance_module._moments._cache_size()
    found = gradient_variance(model, OBJECTIVE, batch, 8)
    assert variance_module._moments._cache_size() == programs + 2  # one view, two views
    assert {way: entry["columns"] for way, entry in found.items()} == dict(zip(WAYS, (2, 2, 2, 3, 3), strict=True))
    keys = {way: jax.random.split(jax.random.fold_in(jax.random.key(0), i), 8) for i, way in enumerate(WAYS)}
    weights = {
        way: [
            float((c.masked_BM / c.noise_level_BM).sum() / c.masked_BM.size)
            for c in (draw(key, batch, way) for key in keys[way])
        ]
        for way in WAYS
    }
    variance = {way: np.var(found, ddof=1) for way, found in weights.items()}
    signal = np.mean(list(weights.values())) ** 2 - sum(variance.values()) / 8 / len(WAYS) ** 2
    assert signal > 0
    for way in WAYS:
        assert found[way]["relative"] == pytest.approx(variance[way] / signal, rel=1e-3), way
    assert gradient_variance(Line("bfloat16"), OBJECTIVE, batch, 8) == found
    one_stream = make_objective(pattern="block_causal")
    assert list(gradient_variance(model, one_stream, batch, 2)) == list(WAYS)[:3]


def test_the_command_writes_a_report_a_picture_and_tables(
    tiny_converted_dir, tiny_ar_dir, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(variance_module, "WAYS", dict(list(WAYS.items())[3:]))  # each is a program to compile
    out = tmp_path / "out"
    argv = ["diagnose", f"--model={tiny_converted_dir}", "--dtype=float32", "--count=3", "--batch-size=2"]
    argv.append(f"--out={out}")
    states = tmp_path / "far" / "states.safetensors"
    assert main([*argv, f"--baseline={tiny_ar_dir}", "--draws=2", "--threshold=0", f"--states={states}"]) == 0
    report = json.loads((out / "diagnosis.json").read_text())
    assert set(report["predictions"]) == {"diffusion", "ar"} and report["weight_drift"]["ffn"]["cosine"]
    assert report["decode_order"]["together"] == 1  # threshold 0: a block in one forward
    assert (out / "diagnosis.png").read_bytes().startswith(b"\x89PNG")
    assert len(load_file(states)["residual"]) == report["states"]
    text, progress = capsys.readouterr()
    assert "expected calibration error" in text and "complementary" in text and "weight drift, ffn" in text
    assert "[3/6] diagnose: order of decoding" in progress and "[6/6] diagnose: gradients, complementary" in progress
    assert main(["diagnose", f"--model={tiny_ar_dir}", "--draws=0"]) == 2
    assert "never converted" in capsys.readouterr().err
    assert main([*argv, "--draws=1"]) == 2


def test_a_model_of_causal_blocks_is_looked_into_as_it_decodes(tiny_converted_dir, tmp_path, capsys):
    """No token waits for one behind it, and no noise level is drawn."""
    save_pretrained(as_mars(load_pretrained(tiny_converted_dir, "float32")), tmp_path / "model")
    argv = ["diagnose", f"--model={tmp_path / 'model'}", "--count=3", "--threshold=1", f"--out={tmp_path / 'out'}"]
    assert main(argv) == 0
    text, progress = capsys.readouterr()
    report = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert list(report["predictions"]) == ["mars"] and "gradient_variance" not in report
    assert report["decode_order"]["left_first"] == 1
    assert "predictions" in text and "mars" in text and "[2/2] diagnose: order of decoding" in progress
    assert main([*argv, f"--states={tmp_path / 'states.safetensors'}"]) == 2
    assert "decodes by mars, whose masks slide" in capsys.readouterr().err
