"""A row ends at any of several tokens, in every mode, whole and in pieces; other ends are no other program."""

import warnings

import numpy as np
import pytest

from edlm_jax.decoding import MODES, Decoder, generate
from edlm_jax.decoding.engine import advance, begin, decode_whole
from edlm_jax.errors import InputError
from tests.decoding.tiny import make_model, prompts

LIMIT = 14


@pytest.mark.parametrize("mode", MODES)
def test_a_row_ends_at_the_first_of_several(mode):
    warnings.simplefilter("ignore")
    decoder, given = Decoder(make_model("shifted")), prompts(np.random.default_rng(0), [2, 11, 6])
    settings = dict(max_new_tokens=LIMIT, threshold=0.5, mode=mode)
    free = generate(decoder, given, **settings)
    assert all(len(tokens) == LIMIT for tokens in free.tokens)
    ends = [free.tokens[0][5], free.tokens[1][2], free.tokens[2][9]]
    programs = (decode_whole, begin, advance)
    compiled = [program.num_programs() for program in programs]
    whole = generate(decoder, given, eos_id=ends, **settings)
    assert [program.num_programs() for program in programs] == compiled  # nor was anything compiled for no end
    expected = [tokens[: 1 + min(tokens.index(end) for end in ends if end in tokens)] for tokens in free.tokens]
    assert whole.tokens == expected
    assert [len(tokens) for tokens in expected] != [LIMIT] * 3
    assert generate(decoder, given, eos_id=np.array(ends), on_block=lambda tokens: None, **settings) == whole
    assert generate(decoder, given, eos_id=tuple(ends) * 4, **settings) == whole  # more than there is room for at first


@pytest.mark.parametrize("eos_id", ["</s>", [1.5], [[1, 2]], True, {1, 2}, [2**40], [None]])
def test_what_is_no_token_is_refused(eos_id):
    with pytest.raises(InputError, match="eos_id must be a token's id, a list of them or None"):
        generate(make_model(), [[1, 2]], max_new_tokens=3, eos_id=eos_id)
