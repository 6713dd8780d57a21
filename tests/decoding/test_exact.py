"""The lossless modes draw AR's own distribution: counted over all texts of four tokens from a vocabulary of five."""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from edlm_jax.decoding import Decoder, Sampling, generate, parse_mode
from edlm_jax.decoding.modes.quadratic_speculation import QuadraticSpeculation
from edlm_jax.decoding.modes.self_speculation import SelfSpeculation
from edlm_jax.models import Conversion, ModelSpec, Transformer
from edlm_jax.models.backend import Xla
from tests.decoding.tiny import CONFIG, make_model, prompts
from tests.seeds import fresh_rng

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

TOKENS, LENGTH, DRAWS, ROWS = 5, 4, 200_000, 2_500
PROMPT = [3, 0, 1]
SAMPLINGS = {
    "temperature 1": Sampling(1.0),
    "temperature 0.7": Sampling(0.7),
    "top_k": Sampling(1.0, top_k=3),
    "top_p": Sampling(0.7, top_p=0.8),
}


DRAFTERS = {  # what is drafted, and where the model reads its masks
    "self_speculation": (SelfSpeculation, "shifted"),
    "quadratic_speculation:drafts=2": (QuadraticSpeculation, "same_position"),
}


@pytest.fixture
def optimized():
    """Programs that run longer than they take to compile."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@functools.cache
def make_tiny(alignment):
    """A decoder whose texts are far from equally likely, and whose drafts are far from right; and its model."""
    small = dict(vocab_size=TOKENS + 1, hidden_size=8, num_hidden_layers=1, head_dim=4, intermediate_size=8)
    small |= dict(num_attention_heads=2, num_key_value_heads=1)
    model = Transformer(ModelSpec.from_hf(CONFIG | small), rngs=nnx.Rngs(3))
    for name in ("q_DNH", "k_DKH", "v_DKH", "o_NHD", "gate_DF", "up_DF", "down_FD"):
        param = getattr(model.layers, name)
        param[...] = param[...] * 20
    model.head_DV[...] = model.head_DV[...] * 15
    conversion = Conversion(TOKENS, 4, pattern="semi_block", alignment=alignment)
    model.spec = dataclasses.replace(model.spec, conversion=conversion)
    with mock.patch("edlm_jax.models.cache.choose", lambda model: Xla()):  # for so small a model twice as fast
        return Decoder(model), model


def narrow(logits_V, sampling):
    """What tokens are drawn by, of one position, in the open."""
    p_V = np.exp((logits_V - logits_V.max()) / sampling.temperature)
    best_first = np.argsort(-p_V)
    kept = best_first[: sampling.top_k or None]
    before = np.cumsum(p_V[kept] / p_V[kept].sum()) - p_V[kept] / p_V[kept].sum()
    kept = kept[before < sampling.top_p]
    return np.where(np.isin(np.arange(len(p_V)), kept), p_V, 0) / p_V[kept].sum()


def ar_probabilities(model, sampling):
    """float64[5, 5, 5, 5]: of each text, by the plain forward."""
    texts = np.stack(np.meshgrid(*[np.arange(TOKENS)] * (LENGTH - 1), indexing="ij"), axis=-1).reshape(-1, LENGTH - 1)
    rows = np.concatenate([np.tile(PROMPT, (len(texts), 1)), texts], axis=1)
    logits = np.array(model(jnp.array(rows)), np.float64)[:, len(PROMPT) - 1 :, :TOKENS]
    p = np.apply_along_axis(narrow, -1, logits, sampling)
    before = np.prod([p[np.arange(len(texts)), place, texts[:, place]] for place in range(LENGTH - 1)], axis=0)
    return (before[:, None] * p[:, -1]).reshape([TOKENS] * LENGTH)


def count_texts(decoder, mode, sampling, draws):
    """How often each text was drawn, and tokens per forward."""
    counts, forwards = np.zeros([TOKENS] * LENGTH), 0
    for first in range(0, draws, ROWS):
        seeds = range(first, first + ROWS)
        result = decoder([PROMPT] * ROWS, mode, limit=LENGTH, sampling=sampling, seed=seeds)
        np.add.at(counts, tuple(np.array(result.tokens).T), 1)
        forwards += result.denoise_forwards
    return counts, draws * LENGTH / forwards


def p_value(counts, probabilities):
    """Of the chi-square test; what is rarely expected is one class."""
    counts, expected = counts.ravel(), probabilities.ravel() * counts.sum()
    assert counts[expected == 0].sum() == 0
    rare = expected < 5
    classes = [np.append(x[~rare], x[rare].sum()) for x in (counts, expected)]
    if classes[1][-1] < 5:
        classes = [x[:-1] for x in classes]
    f_obs, f_exp = classes
    return stats.chisquare(f_obs, f_exp * f_obs.sum() / f_exp.sum()).pvalue


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("mode", DRAFTERS)
def test_frequencies_are_the_models_own_probabilities(mode, sampling, optimized):
    decoder, model = make_tiny(DRAFTERS[mode][1])
    counts, tokens_per_forward = count_texts(decoder, parse_mode(mode), sampling, DRAWS)
    assert p_value(counts, ar_probabilities(model, sampling)) > 0.001
    forwards = 4 if "quadratic" in mode else 7  # of a row whose drafts all fall
    assert tokens_per_forward > 1.1 * LENGTH / forwards


@pytest.mark.parametrize("mode", DRAFTERS)
def test_a_wrong_test_of_drafts_is_found(mode, optimized):
    kind, alignment = DRAFTERS[mode]

    class Faulty(kind.program):
        def accept(self, log_p_BD, log_q_BD, u_BD):
            return log_p_BD >= log_q_BD  # what AR finds likelier, always

    class FaultyMode(kind):
        program = Faulty

    (decoder, model), sampling = make_tiny(alignment), Sampling(1.0)
    counts, _ = count_texts(decoder, FaultyMode(), sampling, DRAWS // 4)
    assert p_value(counts, ar_probabilities(model, sampling)) < 1e-6


def test_frequencies_of_a_draft_that_was_looked_up(optimized):
    (decoder, model), sampling = make_tiny("shifted"), Sampling(1.0)
    counts, _ = count_texts(decoder, parse_mode("prompt_lookup:lookup=1"), sampling, DRAWS // 8)
    assert p_value(counts, ar_probabilities(model, sampling)) > 0.001


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_looked_up_drafts_give_the_text_of_ar_with_the_same_seed(sampling):
    rng = fresh_rng()
    decoder, given = Decoder(make_model("shifted", scale=10.0, seed=int(rng.integers(1000)))), prompts(rng, [3, 9, 14])
    how = dict(max_new_tokens=20, **dataclasses.asdict(sampling), seed=[5, 6, 7])
    found = generate(decoder, given, mode="prompt_lookup:lookup=1", **how)
    assert found.tokens == generate(decoder, given, mode="ar", **how).tokens


@pytest.mark.parametrize(("mode", "drafts"), zip(DRAFTERS, [6, 1], strict=True))
def test_a_drawn_row_depends_on_its_seed_alone(mode, drafts):
    rng = fresh_rng()
    decoder, given = Decoder(make_model(DRAFTERS[mode][1], scale=8.0)), prompts(rng, [2, 11, 6])
    mode = parse_mode(f"{mode.partition(':')[0]}:drafts={drafts}")
    how = dict(max_new_tokens=12, mode=mode, temperature=0.9, top_k=30, top_p=0.95)
    batch = generate(decoder, given, seed=[5, 6, 7], **how)
    for row, prompt in enumerate(given):
        alone = generate(decoder, [prompt], seed=[5 + row], **how)
        assert alone.tokens[0] == batch.tokens[row] and alone.accepted_at[0] == batch.accepted_at[row]
    assert generate(decoder, given, seed=[8, 9, 10], **how).tokens != batch.tokens
    watched = generate(decoder, given, seed=[5, 6, 7], on_block=lambda tokens: None, **how)
    assert watched == batch
