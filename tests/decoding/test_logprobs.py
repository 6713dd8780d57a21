"""Log-probabilities of the engine's tokens: those that the whole model gives, causally and without a cache."""

import numpy as np
import pytest

from edlm_jax.attention import Causal
from edlm_jax.decoding import Decoder, Engine, RequestSettings, parse_mode
from edlm_jax.decoding.logprobs import MOST_BEST
from tests.compilations import compiled
from tests.decoding import oracle
from tests.decoding.tiny import MASK, make_model, prompts, with_gate
from tests.seeds import fresh_rng

LIMIT = 9


def ars(model, prompt, tokens):
    """[tokens, vocabulary] in float64."""
    logits_TV = oracle.forward(model, prompt + tokens, Causal())[len(prompt) - 1 : len(prompt) + len(tokens) - 1]
    logits_TV[:, MASK] = -np.inf
    best_T1 = logits_TV.max(-1, keepdims=True)
    return logits_TV - best_T1 - np.log(np.exp(logits_TV - best_T1).sum(-1, keepdims=True))


@pytest.mark.filterwarnings("ignore:.*reads next tokens")
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("text", ["ar", "prompt_lookup", "self_speculation:lookup=2", "quadratic_speculation"])
def test_log_probabilities_are_ars(text, gated):
    """Greedy and drawn, in windows of several tokens; a row beside them that asks for none has none."""
    rng, mode, plain = fresh_rng(), parse_mode(text), make_model(scale=4.0)
    decoder = Decoder(with_gate(plain, rng) if gated else plain)
    engine, asked = Engine(decoder, mode, slots=3, least=3, columns=64), {}
    engine.warm()
    compiled.clear()
    waiting = [
        (prompt, dict(seed=int(rng.integers(2**32)), temperature=float(rng.choice([0, 0.8])), logprobs=n % 3 > 0))
        for n, prompt in enumerate(prompts(rng, rng.integers(1, 22, 6)))
    ]
    done = []
    while waiting or engine.live:
        while waiting and engine.free:
            prompt, how = waiting.pop()
            asked[engine.insert(prompt, RequestSettings(LIMIT, **how))] = prompt, how, [], []
        for event in engine.step():
            prompt, how, tokens, logprobs = asked[event.slot]
            tokens += event.tokens
            logprobs += event.logprobs
            done += [asked[event.slot]] if event.finished else []
    assert not compiled and len(done) == 6
    for prompt, how, tokens, logprobs in done:
        assert len(logprobs) == (len(tokens) if how["logprobs"] else 0)
        for token, column, log_p_V in zip(tokens, logprobs, ars(plain, prompt, tokens), strict=False):
            ids, values = zip(*column, strict=True)
            assert ids[0] == token and len(set(ids[1:])) == len(ids[1:]) == MOST_BEST
            np.testing.assert_allclose(values, log_p_V[list(ids)], atol=1e-3)
            np.testing.assert_allclose(values[1:], np.sort(log_p_V)[::-1][:MOST_BEST], atol=1e-3)


def test_a_mode_without_them_refuses():
    engine = Engine(make_model(), parse_mode("diffusion:threshold=0.5"), slots=1, columns=20)
    assert "has no log-probabilities" in engine.refuse([1], RequestSettings(4, logprobs=True))
