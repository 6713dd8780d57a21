"""Few programs serve many limits and batch sizes; rows that fill a batch up are done from the start."""

import jax
import pytest

from edlm_jax import generate
from edlm_jax.decoding import Decoder
from edlm_jax.decoding.engine import Run
from tests.compilations import compiled
from tests.decoding.tiny import CONFIG, make_model, prompts
from tests.seeds import fresh_rng

pytestmark = pytest.mark.filterwarnings("ignore:(grid 'position'|.*reads next tokens from a causal stream)")


@pytest.fixture(autouse=True)
def accelerator(monkeypatch):
    """Rows are filled up as they are where they all cost the same, and decoded together."""
    monkeypatch.setattr("edlm_jax.decoding.decoder.platform", lambda: "gpu")
    monkeypatch.setattr("edlm_jax.models.backend.CpuKernels.parts", lambda *_: 1)


@pytest.mark.parametrize("watch", [None, lambda rows: None])
@pytest.mark.parametrize("mode", ["ar", "diffusion:threshold=0.4,grid=position"])
def test_limits_and_batch_sizes_share_programs(mode, watch):
    decoder, rng = Decoder(make_model()), fresh_rng()

    def compilations(count, limit):
        compiled.clear()
        result = generate(decoder, prompts(rng, [5] * count), mode=mode, max_new_tokens=limit, on_block=watch)
        assert list(map(len, result.tokens)) == [limit] * count
        return len(compiled)

    jax.clear_caches()
    assert compilations(4, 32)
    assert not compilations(3, 1) + compilations(4, 7) + compilations(3, 31)
    assert compilations(4, 33) and compilations(5, 33)
    assert not compilations(3, 64) + compilations(8, 50) + compilations(6, 34)


def test_on_cpu_no_row_is_there_for_nothing(monkeypatch):
    monkeypatch.undo()
    assert [Decoder(make_model())._rows(count) for count in (1, 3, 5, 9)] == [1, 3, 5, 9]


@pytest.mark.parametrize("mode", ["ar", "diffusion:threshold=0.4"])
def test_rows_that_fill_a_batch_up_are_done_from_the_start_and_change_nothing(mode, monkeypatch):
    runs, whole = [], Run.whole
    monkeypatch.setattr(Run, "whole", lambda self: (runs.append(self), whole(self))[1])
    decoder, given, seeds = Decoder(make_model()), prompts(fresh_rng(), [1, 6, 11, 3, 5]), [3, 1, 4, 1, 5]
    settings = dict(mode=mode, max_new_tokens=11, temperature=0.8)
    decode = lambda rows: generate(decoder, given[rows], seed=seeds[rows], **settings)  # noqa: E731
    five, four, one = decode(slice(5)), decode(slice(4)), decode(slice(4, 5))
    for name, rows in vars(five).items():
        assert rows == getattr(four, name) + getattr(one, name), name
    filled = runs[0].begin()
    assert filled.done_B.tolist() == [False] * 5 + [True] * 3 and len(five.tokens) == 5
    after = runs[0].collect(runs[0].advance(filled))
    assert after.tokens[5:] == [[]] * 3 and after.row_denoise_forwards[5:] == [0] * 3


@pytest.mark.parametrize("mode", ["ar", "diffusion:threshold=0.4"])
def test_a_row_may_fill_the_models_length(mode):
    model, most = make_model(), CONFIG["max_position_embeddings"]
    (prompt,) = prompts(fresh_rng(), [most - 40])
    decode = lambda prompt, limit: generate(model, [prompt], mode=mode, max_new_tokens=limit).tokens[0]  # noqa: E731
    last = decode(prompt, 40)
    assert len(last) == 40 and last[:32] == decode(prompt, 32)
    first = decode(prompt[:3], most - 3)
    assert len(first) == most - 3 and first[:100] == decode(prompt[:3], 100)
