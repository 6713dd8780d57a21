"""Rows of the engine's thread tell the texts of the decoder alone, whatever comes and goes beside them."""

import threading
import time

import pytest

from edlm_jax.decoding import Engine, RequestSettings, parse_mode
from edlm_jax.decoding.stopping import PART
from edlm_jax.serving.loop import Row
from edlm_jax.serving.requests import ApiError
from tests.seeds import fresh_rng
from tests.serving.served import ENDS, SLOTS, make_decoder, make_loop, make_text


def draw_row(rng, decoder, mode, text):
    """(a row as it may come, the pieces that it tells, the decoder's own answer)."""
    prompt = rng.integers(0, 250, rng.choice([3, 6])).tolist()
    limit, seed = int(rng.choice([5, 22])), int(rng.integers(2**32))  # few limits: the decoder compiles for each
    settings = RequestSettings(limit, seed, ENDS, temperature=0.8, logprobs=mode.lossless and rng.random() < 0.7)
    how = dict(limit=limit, sampling=settings.sampling, seed=[seed], ends=ENDS, detokenize=text)
    stop = ("never",)
    free = decoder([prompt], mode, stop=stop, **how)
    shown = free.texts[0]  # half a character reads as PART, and whether it is half depends on when it is read
    cuts = [cut for begin in range(len(shown) - 2) if PART not in (cut := shown[begin : begin + 2])]
    if rng.random() < 0.6 and cuts:
        stop = ("never", str(rng.choice(cuts)))
    pieces = []
    streamed, stripped = rng.random(2) < 0.5
    row = Row(prompt, settings, stop if len(stop) > 1 else (), bool(streamed), bool(stripped), pieces.append)
    return row, pieces, decoder([prompt], mode, stop=stop, **how)


@pytest.mark.filterwarnings("ignore:.*reads next tokens")
@pytest.mark.parametrize("text", ["diffusion:threshold=0.5", "ar", "self_speculation"])
def test_rows_tell_the_decoders_texts(text):
    """Stop strings, halves of characters, cancelled rows: no text is mixed up, and no slot is lost."""
    rng, mode, decoder = fresh_rng(), parse_mode(text), make_decoder()
    loop = make_loop(decoder, mode, queue=99)
    drawn = [draw_row(rng, decoder, mode, make_text()) for _ in range(14)]
    loop.start()
    cancelled = []
    for row, _, _ in drawn:
        loop.submit([row])
        if rng.random() < 0.3:
            time.sleep(rng.uniform(0, 0.05))
            cancelled.append(drawn[rng.integers(len(drawn))][0])
            loop.cancel(cancelled[-1:])
    loop.close()
    for row, pieces, expected in drawn:
        told, shown = "".join(piece.text for piece in pieces), expected.texts[0]
        shown = shown.strip() if row.stripped else shown
        if row in cancelled:
            assert shown.startswith(told)
            continue
        assert told == shown
        assert row.streamed or len(pieces) == 1
        assert [piece.finished for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
        logprobs = [own for piece in pieces for (own, _), *_ in piece.logprobs]
        assert logprobs == (row.result.tokens[0] if row.settings.logprobs else [])
        assert row.result.tokens == expected.tokens and row.result.accepted_at == expected.accepted_at
        whole = len(expected.tokens[0]) == row.settings.limit and expected.tokens[0][-1] not in ENDS
        assert pieces[-1].finished == ("length" if whole else "stop")
        more = row.result.denoise_forwards - expected.denoise_forwards
        assert row.stop or more == 0  # the engine looks for stop strings at other times
    assert loop.engine.free == SLOTS and not loop._live and not loop._waiting
    assert loop.metrics.totals()["rows"] == len(drawn)


def test_a_cancelled_row_frees_its_slot_at_the_next_turn():
    """In a slot or in the queue; what ended before may be cancelled, too."""
    loop, told = make_loop(make_decoder()), [[] for _ in range(SLOTS + 1)]
    rows = [Row([1, 2, 3], RequestSettings(40), (), True, False, pieces.append) for pieces in told]
    loop.submit(rows)
    loop._turn()  # the thread has not begun: its turns are the test's
    assert loop.engine.free == 0 and list(loop._waiting) == rows[-1:]
    loop.cancel(rows[1:])
    loop._turn()
    assert loop.engine.free == SLOTS - 1 and not loop._waiting
    while loop._live:
        loop._turn()
    loop.cancel(rows)
    assert [bool(pieces and pieces[-1].finished) for pieces in told] == [True] + [False] * SLOTS
    assert loop.engine.free == SLOTS and loop.metrics.totals()["rows"] == SLOTS + 1


def test_rows_on_their_way_into_slots_count(monkeypatch):
    """Who submits while they go in is refused where they take the last places."""
    loop, statuses, insert = make_loop(make_decoder(), queue=0), [], Engine.insert
    rows = [Row([1, 2, 3], RequestSettings(20), (), False, False, lambda piece: None) for _ in range(SLOTS + 1)]

    def submit():
        try:
            loop.submit(rows[-1:])
        except ApiError as error:
            statuses.append(error.status)

    def slow(engine, *what):
        if not engine.live:
            thread.start()
            thread.join(0.2)  # unless it has to wait for this
        return insert(engine, *what)

    thread = threading.Thread(target=submit)
    monkeypatch.setattr(Engine, "insert", slow)
    loop.submit(rows[:-1])
    loop._turn()
    thread.join()
    assert statuses == [429]


@pytest.mark.parametrize("part", ["insert", "step"])
def test_the_queue_is_bounded_and_a_broken_engine_says_so(part, monkeypatch):
    """More rows than slots and queue hold are refused all together; those here when the engine breaks are told."""
    loop, pieces = make_loop(make_decoder(), queue=2), []
    rows = [Row([1, 2, 3], RequestSettings(20), (), False, False, pieces.append) for _ in range(SLOTS + 3)]
    with pytest.raises(ApiError, match="too many") as refused:
        loop.submit(rows)
    assert refused.value.status == 429 and int(refused.value.headers["retry-after"]) >= 1
    loop.submit(rows[:-1])
    with pytest.raises(ApiError, match="too many"):
        loop.submit(rows[-1:])
    loop.cancel(rows[:1])
    loop.submit(rows[-1:])

    def broken(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(loop.engine, part, broken)
    loop.start()
    loop.close()
    assert [piece.finished for piece in pieces] == ["failed"] * (SLOTS + 2)
    assert loop.failed == "MemoryError: no room"
    with pytest.raises(ApiError, match="no room") as refused:
        loop.submit(rows[:1])
    assert refused.value.status == 503
