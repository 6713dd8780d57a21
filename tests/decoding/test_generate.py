"""The compiled decoder equals the plain-Python oracle; a row alone equals the row in a batch; counts are honest."""

import dataclasses
import itertools
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edlm_jax.attention import Causal
from edlm_jax.decoding import MODES, Decoder, generate
from edlm_jax.decoding.engine import decode_whole
from edlm_jax.errors import InputError
from edlm_jax.models import ModelSpec, Transformer
from tests.decoding import oracle
from tests.decoding.tiny import CONFIG, EOS, MASK, VOCAB, make_model, prompts
from tests.seeds import fresh_rng


@pytest.mark.parametrize(
    ("prefill", "alignment", "commit"),
    [
        ("block_causal", "same_position", "fused"),
        ("block_causal", "shifted", "fused"),
        ("block_causal", "same_position", "separate"),
        ("bidirectional", "shifted", "separate"),
        ("bidirectional", "same_position", "fused"),
        ("causal", "same_position", "separate"),
        ("causal", "shifted", "fused"),
    ],
)
def test_decoder_equals_the_oracle(prefill, alignment, commit):
    rng = fresh_rng()
    model = make_model(alignment, prefill, seed=int(rng.integers(1000)))
    given = prompts(rng, [1, 5, 12])
    result = generate(model, given, max_new_tokens=11, threshold=0.5, eos_id=EOS, commit=commit)
    for row, prompt in enumerate(given):
        expected, forwards = decode_by_oracle(
            model, prompt, max_new_tokens=11, threshold=0.5, at_least=1, eos_id=EOS, prefill=prefill
        )
        assert result.tokens[row] == expected
        assert result.row_denoise_forwards[row] == forwards
    committed = sum(-(-len(tokens) // 4) - 1 for tokens in result.tokens)
    assert result.commit_forwards == (committed if commit == "separate" else 0)


@pytest.mark.parametrize("alignment", ["same_position", "shifted"])
def test_blocks_counted_from_position_zero(alignment):
    rng = fresh_rng()
    model = make_model(alignment)
    given = prompts(rng, [8, 6, 11] + [2] * (alignment == "same_position"))
    given[1][-1] = EOS  # of the prompt, in the first block: it ends nothing
    conversion = dataclasses.replace(model.spec.conversion, grid="position")
    on_grid = nnx.merge(*nnx.split(model))
    on_grid.spec = dataclasses.replace(model.spec, conversion=conversion)
    result = generate(on_grid, given, max_new_tokens=9, threshold=0.5, eos_id=EOS)
    for row, prompt in enumerate(given):
        cut = len(prompt) // 4 * 4
        settings = dict(max_new_tokens=9, threshold=0.5, at_least=1, eos_id=EOS, prefill="block_causal")
        expected, forwards = decode_by_oracle(model, prompt[:cut], given=prompt[cut:], **settings)
        assert result.tokens[row] == expected
        assert result.row_denoise_forwards[row] == forwards


def decode_by_oracle(model, prompt, *, block_length=4, **settings):
    """Without the conversion in its static part, one compiled oracle serves every setting."""
    shifted = model.spec.conversion.alignment == "shifted"
    plain = nnx.merge(*nnx.split(model))
    plain.spec = dataclasses.replace(model.spec, conversion=None)
    return oracle.decode(plain, prompt, block_length=block_length, mask_id=MASK, shifted=shifted, **settings)


def test_fixed_steps_equal_the_oracle():
    rng = fresh_rng()
    model, given = make_model(), prompts(rng, [3, 9])
    result = generate(model, given, max_new_tokens=10, block_length=5, rule="fixed:3")
    for row, prompt in enumerate(given):
        expected = decode_by_oracle(
            model,
            prompt,
            max_new_tokens=10,
            block_length=5,
            threshold=1,
            at_least=3,
            eos_id=None,
            prefill="block_causal",
        )
        assert (result.tokens[row], result.row_denoise_forwards[row]) == expected
    assert result.denoise_forwards == 2 * 2 * 2


def test_threshold_one_is_one_token_a_forward():
    model = make_model(scale=3000.0)  # so sure that float32 rounds probabilities to 1
    result = generate(model, [[1, 2, 3]], max_new_tokens=12, threshold=1.0)
    assert result.denoise_forwards == 12 and result.tokens_per_forward == 1.0
    assert sorted(result.accepted_at[0]) == list(range(1, 13))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("mode", MODES)
def test_a_row_alone_equals_the_row_in_a_batch(mode):
    """In every mode, greedy or drawn, under either alignment."""
    rng, options = fresh_rng(), dict(multi_block=":threshold=0.5,blocks=3,opens=0")
    model, given = make_model(str(rng.choice(["same_position", "shifted"]))), prompts(rng, [2, 11, 6])
    temperature = 0.0 if MODES[mode].greedy else float(rng.choice([0.0, 0.7]))
    settings = dict(threshold=0.3, temperature=temperature, eos_id=EOS, mode=mode + options.get(mode, ""))
    decode = partial(generate, Decoder(model), max_new_tokens=9, **settings)
    batch = decode(given, seed=[5, 6, 7])
    for row, prompt in enumerate(given):
        alone = decode([prompt], seed=[5 + row])
        assert (alone.tokens[0], alone.accepted_at[0]) == (batch.tokens[row], batch.accepted_at[row])
        assert alone.row_denoise_forwards[0] == batch.row_denoise_forwards[row]


def test_ar_mode_is_greedy_next_token_without_a_cache():
    rng = fresh_rng()
    model, given = make_model(), prompts(rng, [1, 7])
    result = generate(model, given, max_new_tokens=8, eos_id=EOS, mode="ar")
    for row, prompt in enumerate(given):
        tokens = list(prompt)
        while len(tokens) < len(prompt) + 8 and (len(tokens) == len(prompt) or tokens[-1] != EOS):
            logits_V = oracle.forward(model, tokens, Causal())[len(tokens) - 1]
            logits_V[MASK] = -np.inf
            tokens.append(int(logits_V.argmax()))
        assert result.tokens[row] == tokens[len(prompt) :]
    assert result.tokens_per_forward == 1.0


def test_watching_changes_nothing():
    rng = fresh_rng()
    model, given, seen = make_model(), prompts(rng, [2, 7]), []
    settings = dict(max_new_tokens=11, threshold=0.4, eos_id=EOS)
    assert generate(model, given, on_block=seen.append, **settings) == generate(model, given, **settings)
    for row in range(2):
        growing = [tokens[row] for tokens in seen]
        assert all(later[: len(earlier)] == earlier for earlier, later in itertools.pairwise(growing))
        assert all(len(tokens) % 4 == 0 or tokens == growing[-1] for tokens in growing)
    assert len(seen) > 1


@pytest.mark.parametrize("alignment", ["same_position", "shifted"])
def test_self_speculation_gives_the_ar_tokens(alignment):
    rng = fresh_rng()
    model, given = make_model(alignment, seed=int(rng.integers(1000))), prompts(rng, [1, 6, 11])
    model.layers.o_NHD[...] = model.layers.o_NHD[...] * 0.02  # tokens then follow from the last one
    settings = dict(max_new_tokens=13, eos_id=EOS)
    ar = generate(model, given, mode="ar", **settings)
    drafted = generate(model, given, mode="self_speculation", **settings)
    assert drafted.tokens == ar.tokens
    for row, prompt in enumerate(given):
        expected = settled_by_cycle(model, prompt, ar.tokens[row], alignment == "shifted")
        assert drafted.accepted_at[row] == expected and drafted.row_denoise_forwards[row] == max(expected)
    if alignment == "shifted":  # the first draft is read where AR reads it
        assert drafted.denoise_forwards < 2 * ar.denoise_forwards


def settled_by_cycle(model, prompt, tokens, shifted):
    """By the definition: the forward that settles each token, from what the model drafts after each known prefix."""
    at, count = [1], 1
    while count < len(tokens):
        known = prompt + tokens[:count]
        logits_TV = oracle.forward(model, known + [MASK] * 3, DraftBlock(len(known) - 1, 4))
        logits_TV[:, MASK] = -np.inf
        drafts = logits_TV[len(known) - shifted : len(known) - shifted + 3].argmax(-1).tolist()
        right = 0
        while right < 3 and count + right < len(tokens) and drafts[right] == tokens[count + right]:
            right += 1
        settled = min(right + 1, len(tokens) - count)
        at += [at[-1] + 2] * settled
        count += settled
    return at


@dataclasses.dataclass(frozen=True)
class DraftBlock(Causal):
    """Causal, then one block from `start` on that sees itself both ways."""

    start: int
    length: int

    def allowed(self, q, k):
        return (k <= q) | ((q >= self.start) & (k < self.start + self.length) & (q < self.start + self.length))


def test_temperature_samples_the_softmax():
    model = make_model(scale=5.0)
    seed = int(fresh_rng().integers(1000))
    draws = generate(model, [[3, 1]] * 512, max_new_tokens=1, temperature=1.0, seed=seed, mode="ar")
    logits_V = np.array(model(np.array([[3, 1]]))[0, -1])
    logits_V[MASK] = -np.inf
    expected_V = np.array(jax.nn.softmax(logits_V))
    counts_V = np.bincount([row[0] for row in draws.tokens], minlength=VOCAB) / 512
    assert np.abs(counts_V - expected_V).sum() / 2 < 0.2  # total variation; 512 draws of 60 outcomes: about 0.12
    assert counts_V.max() < 0.9


def test_mixed_prompts_share_programs():
    model, rng = make_model(), fresh_rng()
    jax.clear_caches()  # other tests share them, too
    generate(model, prompts(rng, [3]), max_new_tokens=8)
    before = decode_whole.num_programs()
    for length in (1, 2, 16, 17, 30, 40, 64):
        generate(model, prompts(rng, [length]), max_new_tokens=8, threshold=float(rng.uniform()))
    assert decode_whole.num_programs() == before + 3  # of up to 16, 32 and 64 tokens; 8 was there


def test_two_hundred_mixed_prompts_compile_at_most_eight_programs():
    jax.clear_caches()
    decoder, rng, before = Decoder(make_model()), fresh_rng(), decode_whole.num_programs()
    for length in rng.integers(1, 240, 200):
        changing = dict(threshold=float(rng.uniform()), seed=int(rng.integers(99)))
        generate(decoder, prompts(rng, [length]), max_new_tokens=5, **changing)
    assert 1 < decode_whole.num_programs() - before <= 8


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (dict(block_length=6), "block_length 6 is above the 4"),
        (dict(prefill="causal"), "prefill 'causal' is not the 'block_causal'"),
        (dict(mode="ar"), "'clean_context'.* did not train"),
        (dict(top_k=5), "at temperature 0 they change nothing"),
    ],
)
def test_what_will_not_do_what_it_seems_to_is_said_once(settings, reason):
    decoder = Decoder(make_model())
    with pytest.warns(UserWarning, match=reason):
        generate(decoder, [], max_new_tokens=4, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(decoder, [], max_new_tokens=4, block_length=2, prefill="block_causal")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for _ in range(2):
            generate(decoder, [], max_new_tokens=4, **settings)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 1.5}, "threshold must lie in"),
        ({"mode": "magic"}, "diffusion, ar"),
        ({"prompts": [[1], []]}, "prompt 1 is empty"),
        ({"prompts": [[1], [2, MASK]]}, "prompt 1 holds the mask token"),
        ({"prompts": [[VOCAB]]}, "outside the vocabulary"),
        ({"prompts": [[1] * 250]}, "exceed the model's cache of 256"),
        ({"block_length": 0}, "block_length must be a positive"),
        ({"mask_id": VOCAB}, "mask_id 61 is outside the vocabulary of 61"),
        ({"mask_id": -1}, "mask_id -1 is outside the vocabulary"),
        ({"max_new_tokens": 0}, "max_new_tokens must be positive"),
        ({"prefill": "sideways"}, "prefill 'sideways' is unknown"),
        ({"seed": [1, 2]}, "2 seeds for 1 prompts"),
    ],
)
def test_bad_input_is_refused_with_the_reason(change, message):
    arguments = {"prompts": [[1, 2]], "max_new_tokens": 8} | change
    with pytest.raises(InputError, match=message):
        generate(make_model(), arguments.pop("prompts"), **arguments)


def test_prompts_may_be_an_array():
    decoder, given = Decoder(make_model()), prompts(fresh_rng(), [6, 6])
    assert generate(decoder, np.array(given), max_new_tokens=8) == generate(decoder, given, max_new_tokens=8)


def test_an_unconverted_model_only_decodes_autoregressively():
    model = Transformer(ModelSpec.from_hf(CONFIG), rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="never converted"):
        generate(model, [[1]], max_new_tokens=4)
    assert len(generate(model, [[1]], max_new_tokens=4, mode="ar").tokens[0]) == 4
    assert jnp.isfinite(model(np.array([[1]]))).all()
