"""No page is ever lost, had by two that may write to it, or found again once it holds something else."""

from collections import Counter

import pytest

from edlm_jax.attention import Causal
from edlm_jax.decoding import Decoder, Engine, RequestSettings, parse_mode
from edlm_jax.decoding.pages import Pages, Pool
from edlm_jax.decoding.requests import make_row
from edlm_jax.errors import InputError
from edlm_jax.parallel import cpu
from tests.decoding.test_batching import alone
from tests.decoding.tiny import make_model, prompts
from tests.seeds import fresh_rng

pytestmark = pytest.mark.skipif(not cpu.available(), reason="this installation found no C++ compiler")


class Model:
    """What a pool ought to be, in plain Python: what each page holds, and whose it is."""

    def __init__(self, pool, pages):
        self.pool, self.pages = pool, pages
        self.rows, self.held = {}, {}  # slot -> its table; page -> text up to its end, once a prompt was prefilled

    def text(self, row, page):
        """All that the columns of a page depend on."""
        return (row.pad, *row.tokens_1X[0, : (page + 1) * self.pool.page].tolist())

    def check(self):
        users = Counter(page for table, _ in self.rows.values() for page in table[table >= 0].tolist())
        assert [users[page] for page in range(len(self.pool.users))] == self.pool.users
        assert sorted([*users, *self.pool.free, *self.pool.kept]) == list(range(len(self.pool.users)))
        assert self.pool.used == len(users)
        for table, own in self.rows.values():  # who may write to a page has it alone
            assert all(users[page] == 1 for page in table[own:].tolist() if page >= 0)

    def begin(self, slot, row, writes):
        known = self.pages.begin(slot, row)
        if known is None:
            return False
        table = self.pages.rows([slot]).table_BG[0].copy()
        P = self.pool.page
        for page in range(row.pad // P, known // P):
            assert self.held.get(int(table[page])) == self.text(row, page)  # what is not computed again is there
        for page in table[known // P :].tolist():
            self.held.pop(page, None)  # it is written to
        assert (table[row.pad // P : -(-writes // P)] >= 0).all() and known <= row.start - self.pages.unit
        self.rows[slot] = table, (row.start - self.pages.unit) // P
        return True

    def put(self, slot, row):
        self.pages.put(slot, 0, 1)
        table, own = self.rows[slot]
        self.held |= {int(table[page]): self.text(row, page) for page in range(row.pad // self.pool.page, own)}

    def drop(self, slot):
        self.pages.drop(slot)
        self.rows.pop(slot, None)


def run(rng, steps=400):
    """Rows that begin alike come, wait, are cancelled half-way and end, in a pool that is too small for all of them."""
    decoder, mode = Decoder(make_model()), parse_mode("diffusion:threshold=0.5")
    weights, mode = decoder.weights, decoder.completed(mode)
    pool = Pool(weights, [mode], int(rng.integers(4, 20)) * 64)
    pages = Pages(pool, rows=9, columns=(240, 150), beyond=12, unit=4, pattern=Causal())
    model, parts, waiting = Model(pool, pages), [prompts(rng, [64, 64]) for _ in range(3)], []
    for slot in range(steps):
        # Pages of the same tokens behind others, whole prompts over again, and some that end otherwise.
        prompt = sum((two[rng.integers(2)] for two in parts), [])[: rng.choice([20, 66, 128, 132, 140])]
        prompt += rng.integers(0, 59, 3 * rng.integers(2)).tolist()
        limit = int(rng.integers(1, max(151 - len(prompt), 2)))
        waiting.append((slot, make_row(weights, mode, prompt, RequestSettings(limit), least=64, columns=240), limit))
        while waiting and model.begin(*waiting[0][:2], waiting[0][1].start + waiting[0][2] + 4):
            begun, row, _ = waiting.pop(0)
            model.check()
            if rng.random() < 0.2:
                model.drop(begun)
            else:
                model.put(begun, row)
            model.check()
        assert model.rows or not waiting  # who lacks pages can wait for someone
        for _ in range(rng.integers(1, 3)):
            if model.rows:
                model.drop(int(rng.choice(list(model.rows))))
            model.check()
        if len(waiting) > 4:
            model.drop(waiting.pop(rng.integers(len(waiting)))[0])
    for slot in list(model.rows):
        model.drop(slot)
    model.check()
    assert pool.used == 0 and pool.shared > 0


def test_pages_come_and_go_as_in_a_plain_model():
    run(fresh_rng())


def test_a_leak_is_seen(monkeypatch):
    leave = Pool.leave
    monkeypatch.setattr(Pool, "leave", lambda pool, pages: leave(pool, pages[1:]))
    with pytest.raises(AssertionError):
        run(fresh_rng())


def test_a_page_written_to_while_others_have_it_is_seen(monkeypatch):
    keys = Pages._prompt_keys
    more = lambda pages, row: keys(pages, row) and [*keys(pages, row), b"the next page"]  # noqa: E731
    monkeypatch.setattr(Pages, "_prompt_keys", more)
    with pytest.raises(AssertionError):
        run(fresh_rng())


@pytest.mark.parametrize("texts", ["ar", "diffusion:threshold=0.5", "ar diffusion:threshold=0.5"])
def test_rows_wait_for_pages_and_are_the_decoders(texts):
    """Far more rows than pages: all are decoded at last, as alone; then all pages are free again."""
    rng, decoder = fresh_rng(), Decoder(make_model())
    modes = [parse_mode(text) for text in texts.split()]
    engine = Engine(decoder, modes, slots=6, columns=110, cache_columns=int(rng.choice([192, 384])))
    begins = prompts(rng, [100, 100])
    waiting = []
    for n in rng.integers(1, 96, 16):
        waiting.append(((begins[n % 2][:n]) + prompts(rng, [3])[0], RequestSettings(int(rng.choice([1, 7])))))
    asked, got, done = {}, {}, 0
    while waiting or engine.live:
        while waiting and engine.free and rng.random() < 0.8:
            slot = engine.insert(*waiting[-1])
            asked[slot], got[slot] = waiting.pop(), []
        if rng.random() < 0.05 and asked:
            slot = int(rng.choice(list(asked)))
            engine.release(slot)
            del asked[slot]
        for event in engine.step():
            got[event.slot] += event.tokens
            if event.finished:
                prompt, settings = asked.pop(event.slot)
                assert got[event.slot] in [alone(decoder, mode, prompt, settings).tokens[0] for mode in modes]
                done += 1
    assert done and engine.cache.used == 0 and engine.free == 6


def test_modes_share_what_they_prefill_alike():
    """A causal prefill is the same for each mode that has one; that of blocks is its own."""
    decoder, (prompt,) = Decoder(make_model()), prompts(fresh_rng(), [100])
    texts = "ar", "prompt_lookup", "diffusion:threshold=0.5"
    engine = Engine(decoder, [parse_mode(text) for text in texts], slots=1, columns=110)
    lanes, shared = engine._sides[0].lanes, []
    for lane in lanes:
        sum(lane.prefill(0, prompt, RequestSettings(4)))
        shared.append(engine.cache.shared)
        lane.drop(0)
    assert shared == [0, 64, 64]


def test_an_engine_that_is_warmed_late_finds_no_prompt_in_what_it_rehearsed():
    decoder, (prompt,) = Decoder(make_model()), prompts(fresh_rng(), [90])
    mode, settings, texts = parse_mode("ar"), RequestSettings(15), []
    engine = Engine(decoder, mode, slots=3, columns=110)
    for _ in range(2):
        engine.insert(prompt, settings)
        texts.append([token for _ in iter(lambda: engine.live, 0) for event in engine.step() for token in event.tokens])
        engine.warm()
    assert texts == [alone(decoder, mode, prompt, settings).tokens[0]] * 2


def test_settings_that_can_not_be_are_refused(monkeypatch):
    with pytest.raises(InputError, match="a row may need"):
        Engine(make_model(), slots=2, columns=110, cache_columns=100)
    monkeypatch.setattr(cpu, "available", lambda: False)
    with pytest.raises(InputError, match="caches in pages"):
        Engine(make_model(), slots=2, columns=110, cache_columns=1000)


def test_windows_see_positions_in_pages():
    """Of layers that look back so far only: tokens are those of a plain cache."""
    rng, mode, settings = fresh_rng(), parse_mode("diffusion:threshold=0.5"), RequestSettings(9)
    decoder = Decoder(make_model(architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=20))
    assert decoder.spec.windows != (None,)
    engine = Engine(decoder, mode, slots=3, columns=110)
    begin, asked, got = prompts(rng, [90])[0], {}, {}
    waiting = [begin[:n] + prompts(rng, [3])[0] for n in (20, 70, 70, 85, 90)]
    while waiting or engine.live:
        while waiting and engine.free:
            slot = engine.insert(waiting[-1], settings)
            asked[slot], got[slot] = waiting.pop(), []
        for event in engine.step():
            got[event.slot] += event.tokens
            if event.finished:
                assert got[event.slot] == alone(decoder, mode, asked[event.slot], settings).tokens[0]
    assert engine.cache.shared > 0 and engine.cache.used == 0
