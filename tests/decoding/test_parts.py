"""A batch that is decoded in parts, beside one another, is the batch."""

import jax
import pytest

from edlm_jax import generate
from edlm_jax.decoding import Decoder
from edlm_jax.decoding.engine import decode_whole
from edlm_jax.models.backend import CpuKernels, Xla
from edlm_jax.parallel import cpu
from tests.decoding.test_batching import MODES, OTHERS
from tests.decoding.tiny import make_model, prompts
from tests.seeds import fresh_rng


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("mode", [*MODES, "another"])
def test_parts_of_a_batch_are_the_batch(mode, monkeypatch):
    """Tokens, forwards and where they were accepted, greedy and drawn; all parts are one program."""
    rng, parts = fresh_rng(), 1
    if mode == "another":
        mode = str(rng.choice(OTHERS))
    for backend in (Xla, CpuKernels):
        monkeypatch.setattr(backend, "parts", lambda *_: parts)
    decoder, given = Decoder(make_model()), prompts(rng, rng.integers(1, 20, 6))
    how = dict(mode=mode, max_new_tokens=11, seed=rng.integers(99, size=6).tolist(), eos_id=[3, 5])
    if mode in ("ar", "diffusion:threshold=0.5"):
        how["temperature"] = 0.8
    whole = generate(decoder, given, **how)
    parts = 3
    before = decode_whole.num_programs()
    assert vars(generate(decoder, given, **how)) == vars(whole)
    assert decode_whole.num_programs() == before + 1


@pytest.mark.skipif(not cpu.available(), reason="this installation found no C++ compiler")
def test_parts_are_those_of_cores_that_have_the_weights_near(monkeypatch):
    """As many rows each, few enough programs for the rows, and none for weights that each would read from memory."""
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(4))
    weights = Decoder(make_model()).weights
    assert weights.nbytes == sum(x.nbytes for x in jax.tree.leaves(weights)) < 2**20
    count = lambda rows: weights.backend.parts(rows, weights.nbytes)  # noqa: E731
    assert [count(rows) for rows in (1, 7, 8, 9, 12, 15, 16, 18, 64)] == [1, 1, 2, 1, 3, 3, 4, 3, 4]
    assert CpuKernels().parts(64, 2**30) == Xla().parts(64, 2**20) == 1
