"""Likelihoods: exact where they can be, and the estimate's mean is the bound, masks enumerated one by one."""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest
from flax import nnx

from edlm_jax.attention import Causal
from edlm_jax.diffusion.masks import EvenCounts
from edlm_jax.errors import InputError
from edlm_jax.evaluation import likelihood
from edlm_jax.evaluation.likelihood import log_likelihood
from edlm_jax.models import Conversion
from edlm_jax.parallel.mesh import decoding_mesh
from tests.decoding import oracle
from tests.decoding.test_generate import MASK, make_model
from tests.decoding.test_mesh import put_on
from tests.seeds import fresh_rng

CONTEXT, CONTINUATION = [3, 14, 15, 9, 26], [5, 35, 8, 9, 7, 21]


def converted(C, alignment="same_position", grid="response"):
    model = make_model(scale=20.0, seed=int(fresh_rng().integers(1000)))
    conversion = Conversion(MASK, C, "clean_context", alignment, "block_causal", grid)
    model.spec = dataclasses.replace(model.spec, conversion=conversion)
    return model


def log_probabilities(model, tokens, pattern):
    plain = nnx.merge(*nnx.split(model))
    plain.spec = dataclasses.replace(model.spec, conversion=None)
    logits_TV = oracle.forward(plain, tokens, pattern)
    logits_TV[:, MASK] = -np.inf
    return logits_TV - np.array(jax.nn.logsumexp(logits_TV, axis=-1))[:, None]


def bound(model, C, shifted, continuation=CONTINUATION):
    """By enumeration: in each block the mean over k, and the ways to mask k of its tokens, of n / k times the sum.

    The last block has to be whole: the oracle's padding would stand in it.
    """
    total, start = 0.0, 0
    origin = 0 if model.spec.conversion.grid == "position" else len(CONTEXT)
    known = (len(CONTEXT) - origin) % C  # tokens of the context in the first block
    while start < len(continuation):
        block = continuation[start : start + C - known]
        before, n = CONTEXT + continuation[:start], len(block)
        start, known = start + n, 0
        pattern = oracle.PrefilledBlocks(origin, C, "block_causal")
        for k in range(1, n + 1):
            for masked in itertools.combinations(range(n), k):
                noisy = [MASK if i in masked else token for i, token in enumerate(block)]
                log_p_TV = log_probabilities(model, before + noisy, pattern)
                terms = [log_p_TV[len(before) + i - shifted, block[i]] for i in masked]
                total += n / k * sum(terms) / (n * math.comb(n, k))
    return total


def test_ar_is_the_sum_of_next_token_log_probabilities():
    model = converted(4)
    log_p_TV = log_probabilities(model, CONTEXT + CONTINUATION, Causal())
    expected = sum(log_p_TV[len(CONTEXT) + i - 1, token] for i, token in enumerate(CONTINUATION))
    (got,) = log_likelihood(model, [(CONTEXT, CONTINUATION)], mode="ar")
    assert got.log_likelihood == pytest.approx(expected, rel=1e-5) and got.standard_error == 0


def test_ar_says_what_greedy_decoding_would_give():
    model = converted(4)
    first = int(log_probabilities(model, CONTEXT, Causal())[len(CONTEXT) - 1].argmax())
    second = int(log_probabilities(model, [*CONTEXT, first], Causal())[len(CONTEXT)].argmax())
    others = [[first, second], [first, (second + 1) % 50], [first, (second - 1) % 50], [(first + 1) % 50, second]]
    scores = log_likelihood(model, [(CONTEXT, continuation) for continuation in others], mode="ar")
    assert [score.greedy for score in scores] == [True, False, False, False]


@pytest.mark.parametrize("alignment", ["same_position", "shifted"])
def test_blocks_of_one_token_are_exact(alignment):
    model, shifted = converted(1, alignment), alignment == "shifted"
    (got,) = log_likelihood(model, [(CONTEXT, CONTINUATION)], num_samples=7)
    assert got.log_likelihood == pytest.approx(bound(model, 1, shifted), rel=1e-5)
    assert (got.standard_error, got.num_samples) == (0, 1)
    if shifted:
        (ar,) = log_likelihood(model, [(CONTEXT, CONTINUATION)], mode="ar")
        assert got.log_likelihood == pytest.approx(ar.log_likelihood, rel=1e-5)


@pytest.mark.parametrize(
    ("alignment", "grid"), [("same_position", "response"), ("shifted", "response"), ("shifted", "position")]
)
def test_the_estimate_is_unbiased_and_knows_its_error(alignment, grid):
    model = converted(3, alignment, grid)
    seed = int(fresh_rng().integers(1000))
    continuation = CONTINUATION if grid == "response" else CONTINUATION[:4]
    (got,) = log_likelihood(model, [(CONTEXT, continuation)], num_samples=512, seed=seed)
    expected = bound(model, 3, alignment == "shifted", continuation)
    assert got.standard_error > 0
    assert abs(got.log_likelihood - expected) < 5 * got.standard_error


def test_masks_are_drawn_as_the_estimate_needs_them():
    unknown = np.array([0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0], bool)
    keys = jax.random.split(jax.random.key(int(fresh_rng().integers(1000))), 3000)
    masked, level = map(np.array, jax.vmap(lambda key: EvenCounts(0).hide(key, unknown, 4))(keys))
    assert not masked[:, ~unknown].any()
    for block, n in ((0, 2), (1, 4)):
        columns = slice(4 * block, 4 * block + 4)
        k = masked[:, columns].sum(1)
        np.testing.assert_allclose(np.bincount(k, minlength=n + 1)[1:] / 3000, 1 / n, atol=0.05)
        np.testing.assert_allclose(level[:, 4 * block], k / n)
        share = masked[:, columns].mean(0)[unknown[columns]]
        np.testing.assert_allclose(share, (n + 1) / (2 * n), atol=0.05)


def test_a_checkpoint_decoded_with_another_prefill_is_measured_as_it_was_trained():
    model, pair = converted(3), (CONTEXT, CONTINUATION)
    expected = log_likelihood(model, [pair], num_samples=4)
    conversion = dataclasses.replace(model.spec.conversion, prefill="bidirectional")  # as Efficient-DLM is released
    model.spec = dataclasses.replace(model.spec, conversion=conversion)
    assert log_likelihood(model, [pair], num_samples=4) == expected
    for pattern in ("bidirectional", "semi_block"):
        conversion = dataclasses.replace(conversion, pattern=pattern)
        model.spec = dataclasses.replace(model.spec, conversion=conversion)
        with pytest.raises(InputError, match="block-causal context"):
            log_likelihood(model, [pair], num_samples=4)


def test_bad_input_is_refused():
    model = converted(4)
    with pytest.raises(InputError, match="pair 1: context and continuation"):
        log_likelihood(model, [([1], [2]), ([1], [])])
    with pytest.raises(InputError, match="300 tokens exceed"):
        log_likelihood(model, [([1] * 200, [2] * 100)])
    with pytest.raises(InputError, match="num_samples"):
        log_likelihood(model, [([1], [2])], num_samples=0)


@pytest.mark.parametrize("mode", ["ar", "diffusion"])
def test_a_mask_token_in_the_context_is_a_token_as_any_other(mode):
    model = converted(1, "shifted")
    (got,) = log_likelihood(model, [([3, MASK, 9], CONTINUATION)], mode=mode)
    assert np.isfinite(got.log_likelihood)


def test_a_mesh_gives_one_devices_likelihoods(monkeypatch):
    model, meshes, samples = converted(4), [], likelihood._samples
    spied = lambda *args: (meshes.append(jax.sharding.get_abstract_mesh()), samples(*args))[1]  # noqa: E731
    monkeypatch.setattr(likelihood, "_samples", spied)
    on_mesh = put_on(decoding_mesh(tensor=2), model)
    one, eight = (log_likelihood(m, [(CONTEXT, CONTINUATION)], num_samples=4)[0] for m in (model, on_mesh))
    assert eight.log_likelihood == pytest.approx(one.log_likelihood, rel=1e-5)
    assert meshes[0].empty and meshes[1].shape["tensor"] == 2  # which kernels need: no compiler splits them
