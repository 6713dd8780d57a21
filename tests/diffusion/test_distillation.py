"""Which columns are compared: a noisy one with the clean one that says the same token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edlm_jax.attention import Causal
from edlm_jax.diffusion import example_keys
from edlm_jax.errors import InputError
from tests.seeds import fresh_rng
from tests.training.tiny import make_objective, random_batch, random_model

WEIGHTS = dict(diffusion_weight=0.0, total_variation_weight=1.0, kl_weight=0.5, kl_top16_weight=0.25, drafts_weight=0.5)


@pytest.mark.parametrize("alignment", ["shifted", "same_position"])
@pytest.mark.parametrize("noisy_length", [0, 16])
def test_terms_are_means_over_pairs_of_columns_found_one_by_one(alignment, noisy_length):
    L = 24
    objective = make_objective(
        pattern="causal_block", alignment=alignment, noise="full_masks", noisy_length=noisy_length, **WEIGHTS
    )
    model, batch = random_model(), random_batch(2, L, documents=(11, 9), pad_left=1)
    corruption = objective.corrupt(example_keys(jax.random.key(5), 2), batch)
    M = corruption.noisy_BM.shape[1]
    x_BTD = objective.hidden(model, batch, corruption)
    q_BTV, found = jax.nn.softmax(model.logits(x_BTD)), []
    ar = model(batch["tokens"], pattern=Causal(), **{f"{n}_BT": batch[n] for n in ("positions", "segment_ids")})
    p_BLV = jax.nn.softmax(ar)
    for b in range(2):
        for j in range(M):
            column = j % L if corruption.copies_BM is None else int(corruption.copies_BM[b, j])
            clean = column if alignment == "shifted" else column - 1  # that predicts what the noisy column does
            token = clean + 1
            segments = batch["segment_ids"][b]
            if clean < 0 or token >= L or segments[clean] != segments[token] or not batch["loss_mask"][b, token]:
                continue
            if batch["loss_mask"][b, column]:  # hidden
                p, q = np.float64(p_BLV[b, clean]), np.float64(q_BTV[b, j])
                best = np.argsort(-p)[:16]
                kl = p * np.log(p / q)
                ce = -np.log(q[batch["tokens"][b, token]])
                found.append((np.abs(p - q).sum() / 2, kl.sum(), kl[best].sum(), ce))
    sums, weights = objective.sums(model, batch, corruption), objective.weights(batch, corruption)
    names = ("total_variation", "kl", "kl_top16", "drafts")
    assert [weights[name] for name in names] == [len(found)] * 4 and found
    np.testing.assert_allclose([sums[name]["loss"] for name in names], np.sum(found, axis=0), rtol=1e-4)


def test_the_teacher_is_a_constant():
    objective = make_objective(pattern="causal_block", alignment="shifted", noise="full_masks", **WEIGHTS)
    batch = random_batch(1, 8, documents=(8,))
    corruption = objective.corrupt(example_keys(jax.random.key(5), 1), batch)
    streams, model = objective.streams(batch, corruption), random_model()
    term, x_BTD = objective.terms[0], jnp.asarray(fresh_rng().normal(size=(1, 16, 32)), jnp.float32)
    slope = jax.grad(lambda x: term.sums(streams._replace(found={}), model, x)["loss"])(x_BTD)
    assert np.any(slope[:, :8]) and not np.any(slope[:, 8:])


@pytest.mark.parametrize("pattern", ["clean_context", "block_causal"])
@pytest.mark.parametrize("name", ["total_variation", "kl", "kl_top16"])
def test_a_teacher_that_is_no_ar_model_is_refused(pattern, name):
    with pytest.raises(InputError, match=f"{name}_weight > 0 needs a token-causal clean stream beside the noisy one"):
        make_objective(pattern=pattern, **{f"{name}_weight": 1.0})
