"""The engine's rows are the decoder's, whatever comes, goes and is asked beside them."""

import pytest

from edlm_jax.decoding import Decoder, Engine, RequestSettings, parse_mode
from edlm_jax.errors import InputError
from tests.decoding.tiny import make_model, prompts
from tests.seeds import fresh_rng

MODES = ["diffusion:threshold=0.5", "ar", "self_speculation", "quadratic_speculation", "prompt_lookup"]
OTHERS = [
    "diffusion:threshold=0.5,grid=position",
    "diffusion:threshold=0.5,commit=separate",
    "diffusion:rule=fixed:2",
    "diffusion:threshold=0.5,sub_block_length=2,dual_cache=yes",
    "self_speculation:lookup=2",
    "psd",
    "dmax:threshold=0.5",
    "mars:threshold=0.5",
]


def draw_settings(rng, mode):
    """A request's settings as they may come, none like the last."""
    sampled = not mode.greedy and rng.random() < 0.6
    how = dict(temperature=float(rng.uniform(0.3, 1.5))) if sampled else {}
    if sampled and rng.random() < 0.5:
        how |= dict(top_k=int(rng.integers(0, 20)), top_p=float(rng.uniform(0.3, 1)))
    if "threshold" in vars(mode) and not getattr(mode, "rule", None) and rng.random() < 0.5:
        how["threshold"] = float(rng.uniform(0.2, 1))
    ends = rng.choice(60, rng.integers(0, 6), replace=False).tolist()
    return RequestSettings(int(rng.integers(1, 20)), int(rng.integers(2**32)), ends, **how)


def alone(decoder, mode, prompt, settings):
    """The same request by the decoder."""
    if settings.threshold is not None:
        mode = type(mode)(**vars(mode) | dict(threshold=settings.threshold))
    how = dict(limit=settings.limit, sampling=settings.sampling, seed=[settings.seed], ends=settings.ends)
    return decoder([prompt], mode, **how)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("text", MODES + OTHERS)
def test_rows_are_the_decoders(text):
    """Requests arrive and are released at any step; each row's tokens, ends and forwards are those of it alone."""
    rng, mode = fresh_rng(), parse_mode(text)
    decoder = Decoder(make_model("shifted" if rng.random() < 0.5 else "same_position"))
    engine = Engine(decoder, mode, slots=3, columns=48)
    waiting = [(prompt, draw_settings(rng, mode)) for prompt in prompts(rng, rng.integers(1, 29, 8))]
    asked, got, released = {}, {}, 0
    while waiting or engine.live:
        while waiting and engine.free and rng.random() < 0.7:
            prompt, settings = waiting.pop()
            slot = engine.insert(prompt, settings)
            assert slot not in asked
            asked[slot], got[slot] = (prompt, settings), ([], [])
        if asked and rng.random() < 0.1:
            slot = int(rng.choice(list(asked)))
            engine.release(slot)
            prompt, settings = asked.pop(slot)
            expected = alone(decoder, mode, prompt, settings)
            assert got[slot][0] == expected.tokens[0][: len(got[slot][0])]
            released += 1
        for event in engine.step():
            got[event.slot][0].extend(event.tokens)
            got[event.slot][1].extend(event.accepted_at)
            if event.finished:
                prompt, settings = asked.pop(event.slot)
                expected, (tokens, accepted_at) = alone(decoder, mode, prompt, settings), got[event.slot]
                assert tokens == expected.tokens[0]
                assert accepted_at == expected.accepted_at[0]
                counts = event.denoise_forwards, event.commit_forwards
                assert counts == (expected.denoise_forwards, expected.commit_forwards)
                assert event.finished == ("end" if tokens[-1] in settings.ends else "limit")
    assert not asked and engine.free == 3


def test_refusals():
    """What cannot be decoded is refused in one line and takes no slot."""
    engine = Engine(make_model(), slots=1, columns=20)
    for prompt, settings, reason in [
        ([], RequestSettings(4), "is empty"),
        ([1] * 17, RequestSettings(4), "exceed the 20 of a slot"),
        ([60], RequestSettings(4), "mask token"),
        ([1], RequestSettings(0), "must be positive"),
        ([1], RequestSettings(1, seed=-1), "seed"),
        ([1], RequestSettings(1, ends=range(9)), "8 tokens"),
        ([1], RequestSettings(1, temperature=-1), "temperature"),
        ([1], RequestSettings(1, threshold=2), "threshold"),
    ]:
        assert reason in engine.refuse(prompt, settings)
        with pytest.raises(InputError, match=reason):
            engine.insert(prompt, settings)
    assert engine.free == 1
    engine.insert([1], RequestSettings(4))
    with pytest.raises(InputError, match="in use"):
        engine.insert([1], RequestSettings(4))
