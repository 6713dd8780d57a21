"""As loaded, each released family decodes as its own sampler does: the same tokens from as many denoising forwards."""

import dataclasses

import jax
import numpy as np
import pytest

from edlm_jax.decoding import Decoder, generate
from edlm_jax.errors import InputError
from edlm_jax.models import Conversion
from edlm_jax.pretrained.released import RELEASED
from tests.decoding import dense, released
from tests.decoding.tiny import EOS, MASK, make_model, prompts
from tests.seeds import fresh_rng

LENGTH = 96


def make_decoder(seed, architecture, C, **change):
    """A random model with the family's conversion, but for its mask and block length."""
    conversion = dataclasses.replace(RELEASED[architecture].conversion, mask_token_id=MASK, block_length=C, **change)
    model = make_model(seed=seed, scale=60.0)
    model.spec = dataclasses.replace(model.spec, conversion=conversion)
    return Decoder(model)


def in_the_open(decoder):
    def probabilities(tokens, mask_TT):
        columns = dense.Columns(decoder.weights, MASK, LENGTH)
        return columns.forward(tokens, mask_TT, list(range(len(tokens))))

    return probabilities


def agrees(result, row, expected, seed):
    assert (result.tokens[row], result.row_denoise_forwards[row]) == expected, f"seed {seed}, row {row}"


@pytest.fixture
def seed():
    return int(fresh_rng().integers(2**31))


@pytest.mark.parametrize("alignment", ["same_position", "shifted"])
def test_efficient_dlm(alignment, seed):
    rng, C, blocks = np.random.default_rng(seed), 8, 3
    decoder = make_decoder(seed % 1000, "EfficientDLM", C, alignment=alignment)
    threshold = float(rng.uniform(0.3, 0.95))
    given = prompts(rng, [1, 5, 8, 13, 16, 27])
    result = generate(decoder, given, max_new_tokens=blocks * C, threshold=threshold, eos_id=EOS)
    how = dict(blocks=blocks, C=C, threshold=threshold, shifted=alignment == "shifted", eos_id=EOS, mask_id=MASK)
    for row, prompt in enumerate(given):
        agrees(result, row, released.efficient_dlm(in_the_open(decoder), prompt, **how), seed)


@pytest.mark.parametrize(("U", "dual_cache"), [(16, False), (4, False), (4, True), (16, True)])
def test_fast_dllm_v2(U, dual_cache, seed):
    rng, C, blocks = np.random.default_rng(seed), 16, 2
    decoder, threshold = make_decoder(seed % 1000, "Fast_dLLM_QwenForCausalLM", C), float(rng.uniform(0.3, 0.95))
    how = dict(blocks=blocks, C=C, U=U, threshold=threshold, dual_cache=dual_cache, eos_id=EOS, mask_id=MASK)
    settings = dict(threshold=threshold, eos_id=EOS, sub_block_length=U, dual_cache=dual_cache)
    given = prompts(rng, [9, 21, 32, 36])  # the release never reads a prompt of exactly one block
    for prompt in given:
        limit = blocks * C - len(prompt) % C
        result = generate(decoder, [prompt], max_new_tokens=limit, **settings)
        tokens, forwards = released.fast_dllm_v2(dense.Columns(decoder.weights, MASK, LENGTH), prompt, **how)
        agrees(result, 0, (tokens[:limit], forwards), seed)


def test_fast_dllm_v2_takes_a_first_token_whatever_its_confidence(seed):
    rng, C = np.random.default_rng(seed), 16
    decoder, given = make_decoder(seed % 1000, "Fast_dLLM_QwenForCausalLM", C), prompts(rng, [32, 32, 32])
    settings = dict(max_new_tokens=2 * C, threshold=0.95)
    taken, competing = generate(decoder, given, **settings), generate(decoder, given, commit="separate", **settings)
    assert taken.row_commit_forwards == competing.row_commit_forwards == [1] * 3
    assert all(at[0] == 0 and at[C] <= min(at[C:]) for at in taken.accepted_at), f"seed {seed}"
    assert all(min(at) == 1 for at in competing.accepted_at), f"seed {seed}"
    with pytest.raises(InputError, match="shifted logits"):
        generate(make_decoder(0, "SDARForCausalLM", 4), given, max_new_tokens=4, commit="first_token")
    with pytest.raises(InputError, match="needs alignment 'shifted'"):
        Conversion(5, 4, commit="first_token")
    for mode in ("psd", "dmax"):  # they have their own ways, whatever a checkpoint's sampler does
        assert generate(decoder, [[1, 2]], mode=mode, max_new_tokens=4).commit_forwards == 0
        with pytest.raises(InputError, match="commit"):
            generate(decoder, [[1, 2]], mode=mode, max_new_tokens=4, commit="first_token")


@pytest.mark.parametrize("C", [1, 4])
def test_rows_with_taken_first_tokens_are_those_alone(C, seed):
    rng = np.random.default_rng(seed)
    decoder, given = make_decoder(seed % 1000, "Fast_dLLM_QwenForCausalLM", C), prompts(rng, [2, 11, 8, 12])
    settings = dict(max_new_tokens=11, threshold=0.4, eos_id=EOS)
    batch, seen = generate(decoder, given, **settings), []
    assert generate(decoder, given, on_block=seen.append, **settings) == batch and len(seen) > 1
    for row, prompt in enumerate(given):
        alone = generate(decoder, [prompt], **settings)
        assert (alone.tokens[0], alone.accepted_at[0]) == (batch.tokens[row], batch.accepted_at[row]), f"seed {seed}"


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0.0, 0, 1.0), (0.6, 20, 0.95), (1.7, 5, 0.8)])
def test_sdar(temperature, top_k, top_p, seed):
    rng, C, blocks = np.random.default_rng(seed), 4, 4
    decoder, threshold = make_decoder(seed % 1000, "SDARForCausalLM", C), float(rng.uniform(0.3, 0.95))
    for row, prompt in enumerate(prompts(rng, [1, 4, 6, 11, 12])):

        def draw(p_CV, forward, row=row):
            if not temperature:
                return p_CV.argmax(-1), p_CV.max(-1)
            p_CV = released.narrowed(p_CV, temperature, top_k, top_p)
            key = jax.random.fold_in(jax.random.key(row), forward)
            with np.errstate(divide="ignore"):
                drawn_C = (np.log(p_CV) + np.array(jax.random.gumbel(key, p_CV.shape))).argmax(-1)
            return drawn_C, p_CV[np.arange(C), drawn_C]

        how = dict(blocks=blocks, C=C, threshold=threshold, draw=draw, mask_id=MASK)
        settings = dict(threshold=threshold, temperature=temperature, seed=[row])
        settings |= dict(top_k=top_k, top_p=top_p) if temperature else {}
        result = generate(decoder, [prompt], max_new_tokens=blocks * C - len(prompt) % C, **settings)
        agrees(result, 0, released.sdar(in_the_open(decoder), prompt, **how), seed)


def test_the_confidence_is_a_choice(seed):
    rng = np.random.default_rng(seed)
    decoder, given = make_decoder(seed % 1000, "SDARForCausalLM", 4), prompts(rng, [4, 8, 12])
    settings = dict(max_new_tokens=16, threshold=0.7, temperature=0.8, top_k=1)  # one token is left: it is certain
    assert generate(decoder, given, **settings).row_denoise_forwards == [4] * 3
    raw = generate(decoder, given, confidence="raw", **settings)
    assert raw.denoise_forwards > 12, f"seed {seed}"
    with pytest.raises(InputError, match="confidence 'sure' is unknown; choose one of raw, drawn"):
        generate(decoder, given, confidence="sure", **settings)


@pytest.mark.parametrize("architecture", ["EfficientDLM", "SDARForCausalLM"])
def test_the_grid_is_a_setting(architecture, seed):
    """A checkpoint under the other grid decodes as one that was made for it; whole blocks of prompt have one grid."""
    rng, C = np.random.default_rng(seed), 4
    decoder = make_decoder(seed % 1000, architecture, C)
    other = {"response": "position", "position": "response"}[decoder.spec.conversion.grid]
    made_for_it, given = make_decoder(seed % 1000, architecture, C, grid=other), prompts(rng, [4, 5, 6, 7, 13])
    settings = dict(max_new_tokens=11, threshold=0.5)
    with pytest.warns(UserWarning, match=f"grid '{other}' is not the '{decoder.spec.conversion.grid}'"):
        result = generate(decoder, given, grid=other, **settings)
    assert result == generate(made_for_it, given, **settings)
    own = generate(decoder, given, **settings)
    assert own.tokens[0] == result.tokens[0] and own != result, f"seed {seed}"
    with pytest.raises(InputError, match="grid 'middle' is unknown; choose one of response, position"):
        generate(decoder, given, grid="middle", **settings)
