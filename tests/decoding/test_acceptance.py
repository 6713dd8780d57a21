"""Each rule against a plain-Python reading of its definition; sampling against the softmax it narrows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edlm_jax.decoding.acceptance import RULES, parse_rule
from edlm_jax.decoding.sampling import Draw, RowDraw, RowSampling
from edlm_jax.errors import InputError
from tests.seeds import fresh_rng


def threshold(p_CV, masked, level):
    best = {i: max(p_CV[i]) for i in masked}
    first = max(best, key=lambda i: (best[i], -i))
    return {i for i in masked if i == first or (best[i] >= level and level < 1)}


def factor(p_CV, masked, level):
    order = sorted(masked, key=lambda i: (-max(p_CV[i]), i))
    counts = [n for n in range(1, len(order) + 1) if (n + 1) * (1 - max(p_CV[order[n - 1]])) < level]
    return set(order[: max(counts, default=1)])


def fixed(p_CV, masked, tokens):
    return set(sorted(masked, key=lambda i: (-max(p_CV[i]), i))[:tokens])


def entropy(p_CV, masked, bound):
    nats = {i: -sum(p * np.log(p) for p in p_CV[i] if p > 0) for i in masked}
    order = sorted(masked, key=lambda i: (nats[i], i))
    return {i for n, i in enumerate(order) if n == 0 or sum(nats[j] for j in order[:n]) <= bound}


def margin(p_CV, masked, level):
    gap = {i: sorted(p_CV[i])[-1] - sorted(p_CV[i])[-2] for i in masked}
    widest = max(gap, key=lambda i: (gap[i], -i))
    return {i for i in masked if i == widest or gap[i] >= level}


def prefix(p_CV, masked, level):
    kept = set()
    for i in sorted(masked):
        if kept and max(p_CV[i]) < level:
            break
        kept.add(i)
    return kept


def test_a_threshold_of_one_keeps_one_token_where_float32_rounds_many_to_one():
    logits_BCV = jnp.asarray(100.0 * np.eye(5)[fresh_rng().integers(5, size=(3, 4))], jnp.float32)
    proposal = Draw().propose(logits_BCV, None, None, 0.0, banned_id=None)
    assert (proposal.confidence_BC == 1).all()
    np.testing.assert_array_equal(parse_rule("threshold:1")(proposal, jnp.ones((3, 4), bool)).sum(1), 1)


@pytest.mark.parametrize("text", ["fixed:2", "fixed:1000000", "factor:1", "entropy:1e-07", "threshold:0.123456789"])
def test_a_rule_reads_as_it_is_written(text):
    assert str(parse_rule(text)) == text


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", RULES)
def test_a_block_ends_where_logits_are_no_numbers(name, value):
    """A block whose every forward settled nothing, or the mask, would be decoded for ever."""
    rng, logits_BCV = fresh_rng(), np.full((3, 6, 5), value, np.float32)
    logits_BCV[0], logits_BCV[1, 2] = rng.normal(size=(6, 5)), rng.normal(size=5)
    masked_BC = np.ones((3, 6), bool)
    for banned_id in (4, 0):
        proposal = Draw().propose(jnp.asarray(logits_BCV), None, None, 0.0, banned_id=banned_id)
        assert (proposal.tokens_BC != banned_id).all()
        while masked_BC.any():
            kept_BC = np.asarray(parse_rule(f"{name}:1")(proposal, jnp.asarray(masked_BC)))
            assert kept_BC[masked_BC.any(axis=1)].any(axis=1).all()
            masked_BC &= ~kept_BC
        masked_BC[:, rng.permutation(6)[:3]] = True


@pytest.mark.parametrize("name", RULES)
def test_rules_are_what_they_say(name):
    oracle = globals()[name]
    numbers = {"fixed": (1, 3, 9), "factor": (0.0, 0.6, 2.0), "entropy": (0.0, 0.7, 3.0)}
    for number in numbers.get(name, (0.0, 0.6, 1.0)):
        rule = parse_rule(f"{name}:{number}")
        logits_BCV = fresh_rng().normal(size=(20, 7, 5)) * 3
        masked_BC = fresh_rng().random((20, 7)) < 0.6
        masked_BC[:, fresh_rng().integers(7)] = True
        proposal = Draw().propose(jnp.asarray(logits_BCV, jnp.float32), None, None, 0.0, banned_id=4)
        kept_BC = np.array(rule(proposal, jnp.asarray(masked_BC)))
        logits_BCV[..., 4] = -np.inf
        p_BCV = np.exp(logits_BCV) / np.exp(logits_BCV).sum(-1, keepdims=True)
        np.testing.assert_array_equal(proposal.tokens_BC, p_BCV.argmax(-1))
        for row in range(20):
            masked = np.flatnonzero(masked_BC[row]).tolist()
            assert set(np.flatnonzero(kept_BC[row])) == oracle(p_BCV[row], masked, number), (number, row)


def test_top_k_and_top_p_narrow_what_is_drawn():
    logits_V = fresh_rng().permutation(np.log([0.5, 0.25, 0.15, 0.1]))
    order = np.argsort(-logits_V)
    keys_B = jax.random.split(jax.random.key(int(fresh_rng().integers(2**31))), 4000)
    logits_B1V = jnp.tile(jnp.asarray(logits_V, jnp.float32), (4000, 1, 1))
    for sampling, kept in (
        (Draw(False, top_k=2), 2),
        (Draw(False, top_p=0.7), 2),
        (Draw(False, top_p=0.8), 3),
        (Draw(False, top_k=3, top_p=0.1), 1),
        (Draw(False), 4),
    ):
        tokens_B1 = sampling.propose(logits_B1V, keys_B, jnp.arange(4000), 1.0, banned_id=None).tokens_BC
        counts_V = np.bincount(np.array(tokens_B1[:, 0]), minlength=4)
        expected_V = np.where(np.isin(np.arange(4), order[:kept]), np.exp(logits_V), 0)
        np.testing.assert_allclose(counts_V / 4000, expected_V / expected_V.sum(), atol=0.05)


def test_rows_are_narrowed_by_their_own_numbers_as_all_rows_by_the_same():
    """To the bit, `top_k` without `top_p` among them, and where what is better holds exactly `top_p`."""
    rng, B, V = fresh_rng(), 60, 11
    logits_B1V = jnp.asarray(rng.normal(size=(B, 1, V)), jnp.float32)
    held_BV = np.array(jnp.cumsum(jax.nn.softmax(-jnp.sort(-logits_B1V[:, 0])), axis=-1))
    top_k_B, top_p_B = rng.integers(0, V + 3, B), held_BV[range(B), rng.integers(V - 1, size=B)]
    top_p_B[::3] = 1
    numbers = RowSampling(*(np.reshape(x_B, (B, 1, 1)) for x_B in (np.ones(B, np.float32), top_k_B, top_p_B)))
    found_B1V = RowDraw().log_p(logits_B1V, numbers)
    for row, (top_k, top_p) in enumerate(zip(top_k_B.tolist(), top_p_B.tolist(), strict=True)):
        alone_11V = Draw(False, top_k, top_p).log_p(logits_B1V[row : row + 1], 1.0)
        np.testing.assert_array_equal(found_B1V[row], alone_11V[0], f"{top_k} {top_p}")


def test_rows_are_sorted_where_one_that_draws_asks_for_it(monkeypatch):
    sorts, sort = [], jnp.sort
    counted = lambda x, **how: (jax.debug.callback(lambda: sorts.append(1)), sort(x, **how))[1]  # noqa: E731
    monkeypatch.setattr(jnp, "sort", counted)
    logits_B1V = jnp.asarray(fresh_rng().normal(size=(3, 1, 11)), jnp.float32)
    keys_B1 = jax.random.split(jax.random.key(0), (3, 1))
    choose = jax.jit(lambda numbers: RowDraw().choose(logits_B1V, keys_B1, numbers))

    def chosen(temperature, top_k, top_p):
        columns = np.float32(temperature), np.int32(top_k), np.float32(top_p)
        numbers = RowSampling(*(x_B.reshape(3, 1, 1) for x_B in columns))
        sorts.clear()
        tokens_B1 = choose(numbers)
        jax.effects_barrier()
        return tokens_B1.tolist(), len(sorts)

    plain, none = chosen([0, 1, 2], [3, 0, 0], [0.5, 1, 1])  # what a greedy row asks for changes nothing
    asked, one = chosen([0, 1, 2], [3, 0, 11], [0.5, 1, 1])
    assert (none, one) == (0, 1) and plain == asked
    assert chosen([0, 1, 2], [0, 0, 0], [1, 1e-6, 1])[1] == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("magic:1", "threshold, factor"),
        ("threshold", "needs a number"),
        ("fixed:0", "tokens must"),
        ("margin:2", r"\[0, 1\]"),
    ],
)
def test_bad_rules_are_refused(text, reason):
    with pytest.raises(InputError, match=reason):
        parse_rule(text)
