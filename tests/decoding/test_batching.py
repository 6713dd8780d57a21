"""The engine's rows are the decoder's, whatever comes, goes and is asked beside them."""

from dataclasses import replace

import numpy as np
import pytest

from edlm_jax.attention import Causal
from edlm_jax.decoding import Decoder, Engine, RequestSettings, parse_mode
from edlm_jax.decoding.lane import Lane
from edlm_jax.errors import InputError
from edlm_jax.models.backend import CpuKernels, Xla
from edlm_jax.parallel import cpu
from tests.compilations import compiled
from tests.decoding.tiny import make_model, prompts
from tests.seeds import fresh_rng

LIMIT = 18
MODES = ["ar", "diffusion:threshold=0.5", "self_speculation", "quadratic_speculation"]
OTHERS = [
    "diffusion:threshold=0.5,grid=position,commit=separate",
    "diffusion:threshold=0.5,prefill=bidirectional",
    "diffusion:rule=fixed:2,sub_block_length=2,dual_cache=yes",
    "self_speculation:lookup=2",
    "prompt_lookup",
    "psd",
    "multi_block:threshold=0.5,blocks=3,opens=0",
    "edit:threshold=0.5,edit=0.3",
    "dmax:threshold=0.5",
    "mars:threshold=0.5",
]


def draw_settings(rng, mode):
    """A request's settings as they may come, none like the last; one top-k, for the decoder compiles each."""
    how = {}
    if not mode.greedy and rng.random() < 0.6:
        how |= dict(temperature=float(rng.uniform(0.3, 1.5)), top_k=9, top_p=0.7)
    if "threshold" in vars(mode) and not getattr(mode, "rule", None) and rng.random() < 0.5:
        how["threshold"] = float(rng.uniform(0.2, 1))
    ends = rng.choice(60, rng.integers(0, 6), replace=False).tolist()
    return RequestSettings(int(rng.choice([1, 7, LIMIT])), int(rng.integers(2**32)), ends, **how)


def alone(decoder, mode, prompt, settings):
    """The same request by the decoder."""
    if settings.threshold is not None:
        mode = replace(mode, threshold=settings.threshold)
    how = dict(sampling=settings.sampling, seed=[settings.seed], ends=settings.ends)
    return decoder([prompt], mode, limit=settings.limit, **how)


def _in_sides(count, monkeypatch):
    """The count; an engine's rows are decoded by so many programs, a decoder's row by one."""
    for backend in (Xla, CpuKernels):
        monkeypatch.setattr(backend, "parts", lambda _, rows, size: count if rows > 1 else 1)
    return count


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("text", [*MODES, "another", "in stretches"])
def test_rows_are_the_decoders(text, monkeypatch):
    """Requests arrive and are released at any step; each row's tokens, ends and forwards are those of it alone.

    In one program, or in two beside one another; with caches in pages where attention reads their tables, or not.
    """
    rng = fresh_rng()
    slots = 3 * _in_sides(int(rng.choice([1, 2])), monkeypatch)
    if text == "in stretches":
        monkeypatch.setattr(cpu, "available", lambda: False)
    texts = {"another": OTHERS, "in stretches": [*MODES, *OTHERS]}.get(text, [text])
    mode = parse_mode(str(rng.choice(texts)))
    decoder = Decoder(make_model("shifted" if rng.random() < 0.5 else "same_position"))
    engine, asked, got = Engine(decoder, mode, slots=slots, columns=110, least=int(rng.choice([1, slots]))), {}, {}
    begins = prompts(rng, [30, 90])  # some begin alike
    lengths = [*rng.integers(9, 17, 4), *rng.integers(65, 91, 5)]  # two of the decoder's sizes, one to four pieces
    waiting = [((begins[n % 2] + begins[1 - n % 2])[:n], draw_settings(rng, mode)) for n in rng.permutation(lengths)]
    while waiting or engine.live:
        while waiting and engine.free and rng.random() < 0.7:
            slot = engine.insert(*waiting[-1])
            assert slot not in asked
            asked[slot], got[slot] = waiting.pop(), ([], [])
        if asked and rng.random() < 0.1:
            slot = int(rng.choice(list(asked)))
            engine.release(slot)
            expected, tokens = alone(decoder, mode, *asked.pop(slot)).tokens[0], got[slot][0]
            assert tokens == expected[: len(tokens)]
        for event in engine.step():
            tokens, accepted_at = got[event.slot]
            tokens += event.tokens
            accepted_at += event.accepted_at
            if event.finished:
                prompt, settings = asked.pop(event.slot)
                expected = alone(decoder, mode, prompt, settings)
                assert (tokens, accepted_at) == (expected.tokens[0], expected.accepted_at[0])
                counts = event.denoise_forwards, event.commit_forwards
                assert counts == (expected.denoise_forwards, expected.commit_forwards)
                assert event.finished == ("end" if tokens[-1] in settings.ends else "limit")
    assert not asked and engine.free == slots


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("texts", ["ar diffusion:threshold=0.5", "diffusion:threshold=0.5,prefill=bidirectional"])
def test_nothing_compiles_once_it_is_warm(monkeypatch, texts, sides):
    """Rows come and go, three a side and down to none, greedy and drawn, of any length, of two modes and of one."""
    rng, modes = fresh_rng(), [parse_mode(text) for text in texts.split()]
    slots = 3 * _in_sides(sides, monkeypatch)
    engine = Engine(make_model(), modes, slots=slots, columns=160)
    engine.warm()
    monkeypatch.setattr("edlm_jax.decoding.lane._PATIENCE", 0)  # rows become fewer as soon as they can
    assert len(engine.paces) in (0, 2) and all(min(p.plain) == 1 and max(p.commits) == 3 for p in engine.paces)
    compiled.clear()
    lengths = [*rng.integers(1, 140, 8), 9, 30, 60, 120, 140]  # each size of both ways' prompts
    waiting = [(prompt, draw_settings(rng, modes[-1])) for prompt in prompts(rng, rng.permutation(lengths))]
    while waiting or engine.live:
        while waiting and engine.free and rng.random() < 0.5:
            engine.insert(*waiting.pop())
        if rng.random() < 0.1:
            engine.release(int(rng.integers(slots)))
        engine.step()
    assert not compiled


def test_the_first_request_may_be_guided():
    """An engine that is not warm becomes so before any row lives, and not beside one."""
    rng, decoder, got = fresh_rng(), Decoder(make_model()), [[], []]
    engine = Engine(decoder, [parse_mode("ar"), parse_mode("diffusion:threshold=0.5")], slots=2, columns=64)

    def step(times):
        for event in (event for _ in range(times) for event in engine.step()):
            got[event.slot].extend(event.tokens)

    guided, other = prompts(rng, [20, 9])
    engine.insert(guided, RequestSettings(LIMIT, guide=lambda tokens: np.full(2, -1, np.int32)))
    step(1)
    with pytest.raises(InputError, match="before its first request"):
        engine.warm()
    engine.insert(other, RequestSettings(LIMIT))
    step(3 * LIMIT)
    assert got[0] == decoder([guided], parse_mode("ar"), limit=LIMIT).tokens[0]
    assert len(got[1]) == LIMIT and not engine.live


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_forwards_of_two_widths_are_timed_where_blocks_are_committed(monkeypatch):
    """By the program's kind, in every mode that a threshold can be told."""
    monkeypatch.setattr(Lane, "rehearse", lambda lane, threshold=None: {1: 1.0})
    weights, blocks = Decoder(make_model()).weights, {}
    for text in ["ar", "diffusion", "diffusion:rule=fixed:2", "psd", "multi_block", "edit", "dmax", "mars"]:
        mode = parse_mode(text).completed(weights.spec)
        blocks[text] = Lane(weights, mode, least=1, slots=1, columns=60).pace().block
    assert blocks == dict.fromkeys(blocks, 4) | {"ar": 0, "diffusion:rule=fixed:2": 0, "mars": 0}


def test_rehearsed_rows_are_all_there(monkeypatch):
    """What is timed are forwards of as many rows as it is written down for: none has ended before."""
    lane, timed = Lane(Decoder(make_model()).weights, parse_mode("ar"), least=1, slots=3, columns=60), []
    as_it_is = Lane._time
    monkeypatch.setattr(Lane, "_time", lambda lane: timed.append((lane.live, lane.done_B.any())) or as_it_is(lane))
    assert all(seconds > 0 for seconds in lane.rehearse().values())
    assert timed == [(1, False), (2, False), (3, False)] and lane.live == 0


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_token_is_guessed_before_the_first_forward():
    """Of a row that begins with token 0, which stood among psd's guesses as if something had proposed it."""
    decoder, mode, settings = Decoder(make_model("shifted")), parse_mode("psd"), RequestSettings(12)
    some = prompts(np.random.default_rng(0), [9] * 200)
    firsts = [tokens[0] for tokens in decoder(some, mode, limit=12).tokens]
    prompt = some[firsts.index(0)]
    engine, got = Engine(decoder, mode, slots=1, columns=30), []
    engine.insert(prompt, settings)
    while engine.live:
        got += [token for event in engine.step() for token in event.tokens]
    assert got == alone(decoder, mode, prompt, settings).tokens[0]


@pytest.mark.parametrize("pages", [True, False])
def test_equal_beginnings_are_prefilled_once(pages, monkeypatch):
    """By whole blocks or pages on the same grid, the last block apart; another prompt between changes nothing."""
    if not pages:
        monkeypatch.setattr(cpu, "available", lambda: False)
    rng, model = fresh_rng(), make_model()
    lane = Lane(Decoder(model).weights, Decoder(model).completed(None), least=1, slots=2, columns=200)
    settings = RequestSettings(4)
    first, other = prompts(rng, [150, 90])
    costs = []
    for slot, prompt in [(0, first), (1, other), (0, first), (1, first[:101] + other[:49]), (0, first[1:])]:
        if slot in lane.rows:
            lane.drop(slot)
        costs.append(sum(lane.prefill(slot, prompt, settings)))
    # 149 stand one column away from the blocks of 150.
    most = (24, 88) if pages else (16, 64)  # 128 and 64 columns are in whole pages
    assert costs[0] >= 150 and costs[1] >= 90 and costs[2] <= most[0] and costs[3] <= most[1] and costs[4] >= 149


def test_guided_rows_get_allowed_tokens_alone():
    """Greedily the best of those, as the whole model without a cache has them; rows beside them are their own."""
    rng, model = fresh_rng(), make_model()
    mode = parse_mode("ar")
    engine = Engine(Decoder(model), mode, slots=3, least=3, columns=64)
    engine.warm()
    allowed = lambda salt, tokens: np.random.default_rng([salt, *tokens]).permutation(60)[:5]  # noqa: E731

    def guide(salt):
        bits = lambda tokens: np.isin(np.arange(64), allowed(salt, tokens))  # noqa: E731
        return lambda tokens: np.packbits(bits(tokens), bitorder="little").view(np.int32)

    def best(salt, prompt, tokens):
        row = [*prompt, *tokens]
        logits_V = model(np.array([row + [0] * (40 - len(row))]), pattern=Causal())[0, len(row) - 1]
        ids = allowed(salt, tokens)
        return ids[np.argmax(logits_V[ids])]

    asked, got = {}, {}
    compiled.clear()
    for salt, prompt in enumerate(prompts(rng, rng.integers(1, 20, 8))):
        how = dict(temperature=float(rng.choice([0, 0.9])), seed=int(rng.integers(2**32)))
        if not engine.free:
            _drain(engine, got)
        settings = RequestSettings(int(rng.choice([1, 18])), **how, guide=guide(salt) if salt % 3 else None)
        got[engine.insert(prompt, settings)] = asked[salt] = [salt, prompt, settings, []]
    _drain(engine, got)
    assert not compiled
    for salt, prompt, settings, tokens in asked.values():
        if settings.guide is None:
            assert tokens == alone(Decoder(model), mode, prompt, settings).tokens[0]
            continue
        assert len(tokens) == settings.limit
        for at, token in enumerate(tokens):
            assert token in allowed(salt, tokens[:at])
            assert settings.temperature or token == best(salt, prompt, tokens[:at])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("sides", [1, 2])
def test_rows_go_on_once_one_whose_guide_failed_is_released(monkeypatch, sides):
    def guide(tokens):
        if tokens:
            raise ValueError("no more")
        return np.full(2, -1, np.int32)

    decoder, given = Decoder(make_model()), prompts(fresh_rng(), [9, 9])
    engine, got = Engine(decoder, parse_mode("ar"), slots=_in_sides(sides, monkeypatch) * 2, columns=64), []
    wrong = engine.insert(given[0], RequestSettings(LIMIT, guide=guide))
    engine.insert(given[1], RequestSettings(LIMIT))
    for _ in range(9 * LIMIT):
        try:
            got += [token for event in engine.step() if event.slot != wrong for token in event.tokens]
        except ValueError:
            engine.release(wrong)
    assert got == decoder([given[1]], parse_mode("ar"), limit=LIMIT).tokens[0]


def _drain(engine, got):
    while engine.live:
        for event in engine.step():
            got[event.slot][3].extend(event.tokens)


def test_a_prompt_is_the_engines_once_it_is_in():
    """Whoever asked may go on with his list; his end may be one id, as a decoder takes it."""
    (prompt,), decoder, got = prompts(fresh_rng(), [9]), Decoder(make_model()), []
    expected = decoder([prompt], parse_mode("ar"), limit=LIMIT).tokens[0]
    engine = Engine(decoder, parse_mode("ar"), slots=1, columns=64)
    engine.insert(prompt, RequestSettings(LIMIT, ends=expected[-1]))
    prompt[:] = [1] * 30
    while engine.live:
        (event,) = engine.step()
        got += event.tokens
    assert got == expected[: expected.index(expected[-1]) + 1] and event.finished == "end"


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
        ([1], RequestSettings(1, guide=lambda tokens: None), "be told which tokens may come"),
    ]:
        assert reason in engine.refuse(prompt, settings)
        with pytest.raises(InputError, match=reason):
            engine.insert(prompt, settings)
    assert engine.free == 1
    both = Engine(make_model(), [parse_mode("ar"), parse_mode("diffusion")], slots=1, columns=20)
    assert "mask token" in both.refuse([60], RequestSettings(4))
    assert both.refuse([60], RequestSettings(4, guide=lambda tokens: None)) is None  # ar takes any token
    engine.insert([1], RequestSettings(4))
    with pytest.raises(InputError, match="in use"):
        engine.insert([1], RequestSettings(4))
