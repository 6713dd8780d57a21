"""Models whose layers differ decode as their own uncached forward does: windows, two RoPEs, none."""

import numpy as np
import pytest

from edlm_jax.attention import Causal
from edlm_jax.decoding import Decoder, generate
from edlm_jax.decoding.modes.psd import PSD
from edlm_jax.parallel import cpu
from tests.decoding import dense, oracle
from tests.decoding.test_block_modes import LIMIT, C, Oracle, psd
from tests.decoding.test_generate import decode_by_oracle
from tests.decoding.tiny import EOS, MASK, make_model, prompts
from tests.seeds import fresh_rng

GEMMA3 = dict(
    architectures=["Gemma3ForCausalLM"],
    model_type="gemma3_text",
    num_hidden_layers=3,
    layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    sliding_window=5,
    rope_local_base_freq=100.0,
    query_pre_attn_scalar=4,
)
SMOLLM3 = dict(architectures=["SmolLM3ForCausalLM"], model_type="smollm3", no_rope_layers=[1, 0])
MISTRAL = dict(architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=6)
FAMILIES = dict(gemma3=GEMMA3, smollm3=SMOLLM3, mistral=MISTRAL)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_ar_tokens_are_those_of_the_uncached_forward(family, kernels, monkeypatch):
    if not kernels:
        monkeypatch.setattr(cpu, "available", lambda: False)
    rng, decoded = fresh_rng(), []
    model, given = make_model(seed=int(rng.integers(1000)), **FAMILIES[family]), prompts(rng, [1, 4, 12])
    result = generate(model, given, max_new_tokens=11, mode="ar")
    for prompt in given:
        tokens = list(prompt)
        for _ in range(11):
            logits_TV = oracle.forward(model, tokens, Causal())
            logits_TV[:, MASK] = -np.inf
            tokens.append(int(logits_TV[len(tokens) - 1].argmax()))
        decoded.append(tokens[len(prompt) :])
    assert result.tokens == decoded
    if kernels:  # modes that verify guesses against AR's own cache
        for mode in ("self_speculation", "prompt_lookup"):
            assert generate(model, given, max_new_tokens=11, mode=mode).tokens == decoded, mode


@pytest.mark.filterwarnings("ignore:prefill")
@pytest.mark.parametrize(
    ("family", "prefill", "alignment", "commit"),
    [
        ("gemma3", "block_causal", "same_position", "fused"),
        ("gemma3", "bidirectional", "shifted", "separate"),
        ("gemma3", "causal", "shifted", "fused"),
        ("smollm3", "block_causal", "shifted", "fused"),
    ],
)
def test_blocks_are_those_of_the_oracle(family, prefill, alignment, commit):
    rng = fresh_rng()
    model = make_model(alignment, prefill, seed=int(rng.integers(1000)), **FAMILIES[family])
    given = prompts(rng, [1, 5, 12])
    result = generate(model, given, max_new_tokens=11, threshold=0.5, eos_id=EOS, commit=commit)
    for row, prompt in enumerate(given):
        settings = dict(max_new_tokens=11, threshold=0.5, at_least=1, eos_id=EOS, prefill=prefill)
        expected, forwards = decode_by_oracle(model, prompt, **settings)
        assert (result.tokens[row], result.row_denoise_forwards[row]) == (expected, forwards)


class Uncached(Oracle):
    """The row of test_block_modes.py, read by the model itself, which knows windows, without a cache."""

    def __init__(self, model, prompt):
        super().__init__(None, prompt, [], "block_causal", False)
        self.model = model

    def propose(self, embed=None):
        pattern = oracle.PrefilledBlocks(len(self.prompt), C, self.prefill)
        logits_TV = oracle.forward(self.model, self.tokens + self.block, pattern)[: len(self.tokens) + C]
        logits_TV[:, MASK] = -np.inf
        p_CV = dense.probabilities(logits_TV[len(self.tokens) :])
        return p_CV.argmax(-1).tolist(), p_CV.max(-1).tolist()


def test_guesses_side_by_side_see_what_one_block_would():
    """Their columns are not their positions, and a window is one of positions."""
    rng = fresh_rng()
    model, given = make_model(seed=int(rng.integers(1000)), **GEMMA3), prompts(rng, [3, 11, 6])
    result = Decoder(model)(given, PSD(threshold=1.0, depth=3), limit=LIMIT, ends=[EOS])
    for row, prompt in enumerate(given):
        tokens, at, forwards = psd(Uncached(model, prompt), 1.0, 3)
        assert (result.tokens[row], result.accepted_at[row]) == (tokens, at)
        assert result.row_denoise_forwards[row] == forwards
