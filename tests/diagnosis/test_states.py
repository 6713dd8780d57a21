"""Residual streams against a forward pass of each state in the open, a layer of the model at a time."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from edlm_jax.decoding import Decoder
from edlm_jax.decoding.modes import Diffusion
from edlm_jax.diagnosis.states import write_states
from edlm_jax.diffusion.visited import visits
from edlm_jax.evaluation.batches import decode_batches
from edlm_jax.models import Transformer
from edlm_jax.models.layer import norm
from tests.decoding import dense
from tests.decoding.oracle import Drawn, PrefilledBlocks
from tests.decoding.tiny import EOS, MASK, make_model, prompts
from tests.seeds import fresh_rng

C, LIMIT = 4, 10


def first_layers(model, depth):
    shallow = Transformer(dataclasses.replace(model.spec, num_layers=depth), rngs=nnx.Rngs(0))
    state = nnx.to_pure_dict(nnx.state(model))
    nnx.update(shallow, state | dict(layers=jax.tree.map(lambda w: w[:depth], state["layers"])))
    return shallow


def hidden(model, tokens, mask_TT):
    """float32[T, D] after the final norm."""
    T, L = len(tokens), dense.LENGTH
    mask_LL = np.eye(L, dtype=bool)
    mask_LL[:T, :T] = mask_TT
    graphdef, state = nnx.split(model)
    return np.asarray(_hidden(graphdef, state, np.array([tokens + [0] * (L - T)]), mask_LL)[0, :T])


@partial(jax.jit, static_argnames="graphdef")
def _hidden(graphdef, state, tokens_BT, mask_TT):
    return nnx.merge(graphdef, state).hidden(tokens_BT, pattern=Drawn(mask_TT))


@pytest.mark.parametrize(("prefill_as", "grid"), [("block_causal", "response"), ("causal", "position")])
def test_states_are_those_of_the_decoding(tmp_path, prefill_as, grid):
    rng, path = fresh_rng(), tmp_path / "states.safetensors"
    model = make_model(prefill=prefill_as, seed=int(rng.integers(1000)))
    model.spec = dataclasses.replace(model.spec, conversion=dataclasses.replace(model.spec.conversion, grid=grid))
    decoder, asked = Decoder(model), prompts(rng, [5, 9, 2])
    how = dict(mode=Diffusion(threshold=0.6), limit=LIMIT, ends=EOS, batch_size=2)
    decoded = decode_batches(decoder, asked, **how)
    N = write_states(path, decoder, asked, decoded, batch_size=4)
    found, spec = load_file(path), decoder.spec
    assert found["residual"].shape == (N, spec.num_layers + 1, C, spec.width) and found["residual"].dtype == np.float32
    assert N == sum(row.denoise_forwards for row in decoded)  # each is a look at one state
    shallower, n = {depth: first_layers(model, depth) for depth in range(1, spec.num_layers + 1)}, 0
    for row, (prompt, result) in enumerate(zip(asked, decoded, strict=True)):
        cut = len(prompt) // C * C if grid == "position" else len(prompt)
        new, at = prompt[cut:] + result.tokens, [0] * (len(prompt) - cut) + result.accepted_at
        for first, forward, masked in visits(at, C):
            block = (new[first : first + C] + [MASK] * C)[:C]
            seen = [MASK if hidden else token for hidden, token in zip(masked, block, strict=True)]
            assert [found[name][n] for name in ("row", "first", "forward")] == [row, first, forward]
            assert found["answers"][n].tolist() == block and found["tokens"][n].tolist() == seen
            tokens = prompt[:cut] + new[:first] + seen
            mask_TT = PrefilledBlocks(cut, C, prefill_as).dense(len(tokens), len(tokens))
            np.testing.assert_array_equal(found["residual"][n, 0], model.embedding_VD[...][np.array(seen)])
            for depth, shallow in shallower.items():  # a model of the first layers has what they leave, normed
                normed_CD = norm(model.spec, found["residual"][n, depth], model.final_norm_D[...])
                expected_CD = hidden(shallow, tokens, mask_TT)[-C:]
                np.testing.assert_allclose(normed_CD, expected_CD, rtol=1e-3, atol=1e-3)
            logits_CV = dense.predict(decoder.weights, tokens, mask_TT, MASK)[-C:]
            if first + C <= len(at):  # nothing lies behind the end: what is accepted then follows from the state
                accepted = [i for i in range(C) if at[first + i] == forward]
                assert [int(logits_CV[i].argmax()) for i in accepted] == [block[i] for i in accepted]
            n += 1
    assert n == N
