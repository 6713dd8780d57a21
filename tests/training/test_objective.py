"""Losses against numpy, no leak, packing, block length 1."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edlm_jax.attention import CleanContext
from edlm_jax.diffusion import Corruption, example_keys
from edlm_jax.models.column_losses import CrossEntropy
from edlm_jax.models.head import column_loss
from tests.seeds import fresh_rng
from tests.training.tiny import MASK_ID, make_objective, random_batch, random_model

CLEAN = make_objective()
SEMI = make_objective(pattern="semi_block")
JOINT = make_objective(pattern="semi_block", ar_weight=1.0, diffusion_weight=0.3)
AR = make_objective(pattern="causal")


class Lookup:
    """Stands for a model: a token's logits are a row of a table, plus one that tells the streams' columns apart."""

    def __init__(self, vocab=97):
        rng = fresh_rng()
        self.table_VD, self.column_SD = rng.normal(size=(vocab, 5)), rng.normal(size=(512, 5))
        self.head_DV = rng.normal(size=(5, vocab))

    def hidden(self, tokens_BT, *, pattern, positions_BT, segment_ids_BT, copies_BM, remat, columns):
        self.pattern, self.streams = pattern, (positions_BT, segment_ids_BT)
        return (jnp.asarray(self.table_VD)[tokens_BT] + self.column_SD[None, : tokens_BT.shape[1]])[:, :columns]

    def cross_entropy(self, x_BTD, targets_BT, supervised_BT):
        return column_loss(CrossEntropy(), x_BTD, jnp.asarray(self.head_DV), supervised_BT, targets_BT=targets_BT)[0]

    def log_probs(self, tokens_BT):
        logits = (self.table_VD[tokens_BT] + self.column_SD[None, : tokens_BT.shape[1]]) @ self.head_DV
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def measure(objective, model, batch, corruption):
    """(loss, sums, weights, what the model was given as positions and segments)"""

    @jax.jit
    def run(batch, corruption):
        sums, weights = objective.sums(model, batch, corruption), objective.weights(batch, corruption)
        return objective.loss(sums, weights), sums, weights, model.streams

    return run(batch, corruption)


def metrics_of(objective, model, batch, corruption):
    """By name, of the whole batch."""

    @jax.jit
    def run(batch, corruption):
        sums, weights = objective.sums(model, batch, corruption), objective.weights(batch, corruption)
        return objective.metrics(sums, weights, objective.streams(batch, corruption))

    return run(batch, corruption)


def random_corruption(batch):
    rng = fresh_rng()
    shape = batch["tokens"].shape
    masked = (rng.random(shape) < 0.5) & (batch["loss_mask"] > 0)
    levels = rng.uniform(0.01, 1, shape).astype(np.float32)
    return Corruption(np.where(masked, MASK_ID, batch["tokens"]).astype(np.int32), masked, levels)


def ar_reference(batch, log_probs):
    total = count = 0
    for row, segments in enumerate(batch["segment_ids"]):
        for i in range(len(segments) - 1):
            if batch["loss_mask"][row, i + 1] and segments[i] == segments[i + 1]:
                total, count = total - log_probs[row, i, batch["tokens"][row, i + 1]], count + 1
    return total, count


def diffusion_reference(batch, corruption, log_probs, *, shifted, span=None):
    """`span`: a block's columns, or a group's, of two streams. Shifted, its first token is then read from the clean one
    before it.
    """
    total, bins, counts = 0, np.zeros(4), np.zeros(4)
    M = corruption.noisy_BM.shape[1]
    for row, j in np.argwhere(corruption.masked_BM):
        i = j if corruption.copies_BM is None else corruption.copies_BM[row, j]
        segments, t = batch["segment_ids"][row], corruption.noise_level_BM[row, j]
        if shifted and (i == 0 or segments[i - 1] != segments[i]):
            continue
        at = M + i - 1 if shifted and span and j % span == 0 else j - shifted
        ce = -log_probs[row, at, batch["tokens"][row, i]]
        total, bins[int(t * 4)], counts[int(t * 4)] = total + ce / t, bins[int(t * 4)] + ce, counts[int(t * 4)] + 1
    return total, bins, counts


def test_ar_loss_is_numpys():
    batch, model = random_batch(3, 13, documents=(4, 6)), Lookup()
    corruption = AR.corrupt(None, batch)
    loss, _, weights, _ = measure(AR, model, batch, corruption)
    total, count = ar_reference(batch, model.log_probs(batch["tokens"]))
    assert weights["ar"] == count and not corruption.masked_BM.any()
    np.testing.assert_allclose(loss, total / count, rtol=1e-5)


@pytest.mark.parametrize(
    "pattern, alignment, noisy_length",
    [
        ("block_causal", "same_position", 0),
        ("block_causal", "shifted", 0),
        ("clean_context", "shifted", 0),
        ("clean_context", "same_position", 24),
        ("clean_context", "shifted", 8),
        ("clean_context", "shifted", 32),
        ("groups", "shifted", 0),
        ("groups", "shifted", 32),
    ],
)
def test_diffusion_loss_is_numpys(pattern, alignment, noisy_length):
    groups = dict(pattern="clean_context", noise="chain", group=2) if pattern == "groups" else dict(pattern=pattern)
    objective = make_objective(alignment=alignment, noisy_length=noisy_length, **groups)
    batch, model = random_batch(3, 16, documents=(5, 8), pad_left=3), Lookup()
    corruption = random_corruption(batch)
    if noisy_length:
        key = jax.random.key(fresh_rng().integers(1 << 30))
        corruption = jax.device_get(objective.corrupt(example_keys(key, 3), batch))
        assert corruption.masked_BM.any()
    loss, sums, weights, _ = measure(objective, model, batch, corruption)
    two_streams = pattern != "block_causal"
    streams = [corruption.noisy_BM, batch["tokens"]] if two_streams else [corruption.noisy_BM]
    log_probs = model.log_probs(np.concatenate(streams, axis=1))
    how = dict(shifted=alignment == "shifted", span=4 * objective.layout.group if two_streams else None)
    total, bins, counts = diffusion_reference(batch, corruption, log_probs, **how)
    assert weights["diffusion"] == counts.sum() == sums["diffusion"]["bin_count"].sum()
    np.testing.assert_allclose(loss, total / counts.sum(), rtol=1e-5)
    np.testing.assert_allclose(sums["diffusion"]["bin_ce"], bins, rtol=1e-5)


def test_joint_loss_is_numpys_and_lays_out_two_streams():
    batch, model = random_batch(3, 16, documents=(5, 8), pad_left=3), Lookup()
    corruption = random_corruption(batch)
    loss, _, _, streams = measure(JOINT, model, batch, corruption)
    log_probs = model.log_probs(np.concatenate([corruption.noisy_BM, batch["tokens"]], axis=1))
    ar, ar_count = ar_reference(batch, log_probs[:, 16:])
    diffusion, _, counts = diffusion_reference(batch, corruption, log_probs[:, :16], shifted=False)
    expected = 1.0 * ar / ar_count + 0.3 * diffusion / counts.sum()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert model.pattern == CleanContext(16, 4, "token_causal")
    for name, seen in zip(("positions", "segment_ids"), streams, strict=True):
        np.testing.assert_array_equal(seen, np.concatenate([batch[name]] * 2, axis=1))


def test_noise_is_each_examples_own():
    batch = random_batch(1, 64, documents=(64,))
    batch = {name: np.repeat(value, 6, axis=0) for name, value in batch.items()}
    key = jax.random.key(fresh_rng().integers(1 << 30))
    noisy, masked, *_ = jax.jit(lambda key, batch: CLEAN.corrupt(example_keys(key, 6), batch))(key, batch)
    assert len(np.unique(np.asarray(noisy), axis=0)) == 6
    assert not np.any(masked & (batch["loss_mask"] == 0))


def test_noisy_columns_are_copies():
    """Of tokens, positions and documents alike; noisy where masked, and never of a block without loss."""
    objective = make_objective(noisy_length=32)
    batch, model = random_batch(3, 16, documents=(5, 8), pad_left=3), Lookup()
    batch["loss_mask"][:, 4:8] = 0
    key = jax.random.key(fresh_rng().integers(1 << 30))
    corruption = jax.device_get(objective.corrupt(example_keys(key, 3), batch))
    tokens_BM = np.take_along_axis(batch["tokens"], corruption.copies_BM, axis=1)
    np.testing.assert_array_equal(corruption.noisy_BM, np.where(corruption.masked_BM, MASK_ID, tokens_BM))
    loss_mask_BM = np.take_along_axis(batch["loss_mask"], corruption.copies_BM, axis=1)
    assert loss_mask_BM.reshape(3, 8, 4).any(-1).all() and not np.any(corruption.masked_BM & (loss_mask_BM == 0))
    measure(objective, model, batch, corruption)
    assert model.pattern == CleanContext(16, 4, noisy_length=32)
    streams = measure(objective, model, batch, corruption)[-1]
    for name, seen in zip(("positions", "segment_ids"), streams, strict=True):
        copied = np.take_along_axis(batch[name], corruption.copies_BM, axis=1)
        np.testing.assert_array_equal(seen, np.concatenate([copied, batch[name]], axis=1))


@pytest.mark.parametrize(
    "objective",
    [
        CLEAN,
        SEMI,
        make_objective(alignment="shifted"),
        make_objective(noise="chain", group=2),
        make_objective(noise="chain", group=3, pattern="semi_block", alignment="shifted"),
    ],
    ids=["clean context", "semi-block", "shifted", "groups", "groups, shifted"],
)
def test_no_leak(objective):
    """The gradient of a noisy block's loss reaches that block and strictly earlier clean blocks of its document alone.

    In a group of blocks it reaches the noisy ones before it, and of the clean ones those before the group.
    Every column of both streams holds a token of its own, so a row of the (untied) embedding's gradient is a column's.
    """
    L, C = 24, 4
    batch = random_batch(1, L, documents=(10, 7), pad_left=2)  # columns 0-1 padding, 2-11, 12-18, 19-23 padding
    batch["tokens"] = np.arange(L, dtype=np.int32)[None]
    noisy_BL = np.arange(L, 2 * L, dtype=np.int32)[None]
    graphdef, state = nnx.split(random_model(tie_word_embeddings=False))

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    @functools.partial(jax.grad, argnums=0)
    def gradient(params, masked_BL):
        corruption = Corruption(noisy_BL, masked_BL, jnp.ones((1, L)))
        return objective.sums(nnx.merge(graphdef, params), batch, corruption)["diffusion"]["loss"]

    segments, blocks = batch["segment_ids"][0], np.arange(L) // C
    masked_NBL = (blocks[None] == np.arange(L // C)[:, None])[:, None] & (segments > 0)
    gradient_NVD = gradient(nnx.to_pure_dict(state), masked_NBL)["embedding_VD"]
    reached_NV = np.any(np.asarray(gradient_NVD) != 0, axis=-1)[:, : 2 * L]
    for block, masked_L in enumerate(masked_NBL[:, 0]):
        same_document = (segments > 0) & np.isin(segments, segments[masked_L])
        first = block - block % objective.layout.group
        np.testing.assert_array_equal(reached_NV[block, :L], same_document & (blocks < first))
        np.testing.assert_array_equal(reached_NV[block, L:], same_document & (first <= blocks) & (blocks <= block))


def test_packed_equals_separate():
    """Two documents in one row, the first with left padding, give the sums that they give in rows of their own."""
    graphdef, state = nnx.split(random_model())
    sums = jax.jit(lambda batch, corruption: JOINT.sums(nnx.merge(graphdef, state), batch, corruption))
    packed = random_batch(1, 24, documents=(10, 9), pad_left=2)
    corruption = random_corruption(packed)
    empty = jax.tree.map(np.zeros_like, (packed, corruption))
    together = sums(*stack_rows((packed, corruption), empty))
    alone = sums(*stack_rows(only(packed, corruption, 0, 12, 24), only(packed, corruption, 12, 24, 24)))
    assert all(weight > 0 for weight in JOINT.weights(packed, corruption).values())
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def only(batch, corruption, start, stop, length):
    """The columns start..stop of a row, moved to its front."""
    move = lambda x: np.pad(x[:, start:stop], ((0, 0), (0, length - stop + start)))  # noqa: E731
    return jax.tree.map(move, (batch, corruption))


def stack_rows(*rows):
    batch, corruption = jax.tree.map(lambda *x: np.concatenate(x), *rows)
    levels_BL = np.where(corruption.noise_level_BM > 0, corruption.noise_level_BM, 1)  # padding: any level but 0
    return batch, corruption._replace(noise_level_BM=levels_BL)


def test_block_length_1_has_an_exact_likelihood():
    """Masked tokens do not see each other: the loss of a mask is the sum of its tokens' ce / t, masked one by one."""
    L = 12
    objective = make_objective(block_length=1)
    graphdef, state = nnx.split(random_model())
    sums = jax.jit(lambda batch, corruption: objective.sums(nnx.merge(graphdef, state), batch, corruption))
    row = random_batch(1, L, documents=(L,))
    batch = {name: np.repeat(value, L, axis=0) for name, value in row.items()}
    levels = np.tile(fresh_rng().uniform(0.1, 1, (1, L)).astype(np.float32), (L, 1))

    def total(masked_BL):
        noisy_BL = np.where(masked_BL, MASK_ID, batch["tokens"])
        return sums(batch, Corruption(noisy_BL, masked_BL, levels))["diffusion"]["loss"]

    at_once = np.zeros((L, L), bool)
    at_once[3] = True
    np.testing.assert_allclose(total(at_once), total(np.eye(L, dtype=bool)), rtol=1e-5)


@pytest.mark.parametrize("alignment, noisy_length", [("same_position", 0), ("shifted", 0), ("shifted", 8)])
def test_nats_are_counted_per_token_of_documents(alignment, noisy_length):
    """Masked or not, but not what fills last blocks; shifted, not the first token of a document."""
    R = 24  # so many that blocks which are dealt out hold some of them
    objective = make_objective(alignment=alignment, noisy_length=noisy_length)
    batch = random_batch(R, 16, documents=(5, 8), pad_left=3)
    batch["loss_mask"][:, 12:] *= 2
    key = jax.random.key(fresh_rng().integers(1 << 30))
    corruption = jax.device_get(objective.corrupt(example_keys(key, R), batch))
    copies_BM = corruption.copies_BM if noisy_length else np.tile(np.arange(16), (R, 1))
    first_of_documents = {3, 8} if alignment == "shifted" else set()
    counted_BL = (batch["loss_mask"] == 1) & (batch["segment_ids"] > 0)
    counted_BL &= [column not in first_of_documents for column in range(16)]
    expected = sum(counted_BL[row, column] for row in range(R) for column in copies_BM[row])
    assert 0 < objective.weights(batch, corruption)["tokens"] == expected
