import collections
import itertools
import json
from dataclasses import replace

import grain
import numpy as np
import pytest

from edlm_jax.data import packing, pipeline
from edlm_jax.data.pipeline import Data, EvalBatches, make_dataset, shuffle
from edlm_jax.errors import InputError
from tests.data.conftest import CHAT_TEMPLATE, make_tokenizer
from tests.seeds import fresh_rng

LENGTH, BLOCK = 48, 4
WINDOW = 8


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    """Windows of few rows, so that a few batches cross many of them."""
    monkeypatch.setattr(packing, "WINDOW_TOKENS", 0)
    monkeypatch.setattr(packing, "MIN_WINDOW_ROWS", WINDOW)


def make_data(sources, **kwargs):
    sizes = dict(batch_size=4, length=LENGTH, block_length=BLOCK, eval_batches=1000)
    return Data(**sizes | dict(sources=sources, eval_sources=sources) | kwargs)


def write_texts(path, count, name="doc", random=None):
    """Texts that name themselves and have random lengths, some longer than a row."""
    random = random or fresh_rng()
    texts = [f"{name}{i} {'x' * int(random.integers(1, 90))}" for i in range(count)]
    path.write_text("".join(json.dumps(dict(text=text)) + "\n" for text in texts))
    return dict(kind="jsonl", path=str(path))


def write_pairs(path, count, name="pair"):
    random = fresh_rng()
    rows = [dict(prompt=f"{name}{i} {'p' * int(random.integers(0, 9))}", response="r" * 5) for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return dict(kind="jsonl", path=str(path))


def take(data, tokenizer, count, *, seed=0, **kwargs):
    return list(itertools.islice(make_dataset(replace(data, seed=seed), tokenizer, **kwargs), count))


def names_of(batches, tokenizer):
    """The first word of every document that begins in the batches, in their order."""
    found = []
    for batch in batches:
        for tokens_L, segments_L, positions_L in zip(
            batch["tokens"], batch["segment_ids"], batch["positions"], strict=True
        ):
            for column in np.flatnonzero((positions_L == 0) & (segments_L > 0)):
                text = tokenizer.decode(tokens_L[column : np.flatnonzero(segments_L == segments_L[column])[-1] + 1])
                if text[:3] in ("doc", "pai", "oth"):  # the later pieces of a long text have no name
                    found.append(text.split(" ")[0])
    return found


def assert_same_batches(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def differ(left, right):
    return any((a["tokens"] != b["tokens"]).any() for a, b in zip(left, right, strict=True))


def test_a_batch_is_four_int32_arrays(tmp_path, tokenizer):
    batch = take(make_data([write_pairs(tmp_path / "a.jsonl", 20)]), tokenizer, 1)[0]
    assert set(batch) == {"tokens", "segment_ids", "positions", "loss_mask"}
    assert all(value.shape == (4, LENGTH) and value.dtype == np.int32 for value in batch.values())


@pytest.mark.parametrize("step", [0, 1, 7, 50])
def test_restored_iterator_goes_on_bitwise(step, tmp_path, tokenizer):
    """Through packing windows, a weighted mixture, long documents in pieces and several epochs."""
    sources = [write_texts(tmp_path / "a.jsonl", 40) | dict(weight=2.5), write_pairs(tmp_path / "b.jsonl", 33)]
    data = make_data(sources)
    iterator = make_dataset(replace(data, seed=3), tokenizer)
    for _ in range(step):
        next(iterator)
    state = json.dumps(iterator.get_state())
    following = [next(iterator) for _ in range(30)]
    restored = make_dataset(replace(data, seed=3), tokenizer)
    if step % 2:
        next(restored)  # a used iterator is as good as a fresh one
    restored.set_state(json.loads(state))
    assert json.dumps(restored.get_state()) == state
    assert_same_batches([next(restored) for _ in range(30)], following)
    iterator.close()
    restored.close()


def test_seed_decides_the_order(tmp_path, tokenizer):
    data = make_data([write_texts(tmp_path / "a.jsonl", 40)])
    first = take(data, tokenizer, 5, seed=1)
    assert_same_batches(first, take(data, tokenizer, 5, seed=1))
    assert differ(first, take(data, tokenizer, 5, seed=2))


def test_every_epoch_has_every_document_in_an_order_of_its_own(tmp_path, tokenizer):
    count = 5 * WINDOW  # rows leave a window in another order: an epoch is a whole number of windows here
    data = make_data([write_texts(tmp_path / "a.jsonl", count)], packing="one_per_row", length=128, batch_size=WINDOW)
    windows = [sorted(names_of([batch], tokenizer)) for batch in take(data, tokenizer, 15)]
    for epoch in (windows[:5], windows[5:10], windows[10:]):
        assert sorted(sum(epoch, [])) == sorted(f"doc{i}" for i in range(count))
    assert windows[:5] != windows[5:10] != windows[10:]
    ordered = make_data(**(vars(data) | dict(shuffle=False)))
    windows = [sorted(names_of([batch], tokenizer)) for batch in take(ordered, tokenizer, 10)]
    assert windows[:5] == windows[5:] and windows[0] == sorted(f"doc{i}" for i in range(WINDOW))


@pytest.mark.parametrize("shards", [2, 3])
def test_shards_share_no_document_of_an_epoch(shards, tmp_path, tokenizer):
    count = 6 * WINDOW  # for each shard an epoch is a whole number of windows
    sources = [write_texts(tmp_path / "a.jsonl", count)]
    data = make_data(sources, batch_size=12, packing="one_per_row", length=128, shards=shards)
    shares = []
    for shard in range(shards):
        rows = range(shard * 12 // shards, (shard + 1) * 12 // shards)
        batches = take(data, tokenizer, count // 12, rows=rows)
        assert batches[0]["tokens"].shape == (12 // shards, 128)
        shares.append(names_of(batches, tokenizer))
    assert [len(share) for share in shares] == [count // shards] * shards
    assert sorted(sum(shares, [])) == sorted(f"doc{i}" for i in range(count))


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_rows_are_those_of_the_whole_batch_whoever_reads_them(shards, tmp_path, tokenizer):
    """Fewer readers than shards, as many, more; one that reads every second row, as devices may be numbered."""
    sources = [write_texts(tmp_path / "a.jsonl", 40) | dict(weight=2.5), write_pairs(tmp_path / "b.jsonl", 33)]
    data = make_data(sources, batch_size=8, shards=shards)
    whole = take(data, tokenizer, 9)
    for rows in (range(4), range(4, 8), range(2, 4), [1, 3, 5, 7], [6]):
        part = [{name: value[list(rows)] for name, value in batch.items()} for batch in whole]
        assert_same_batches(part, take(data, tokenizer, 9, rows=rows))
    assert differ([{"tokens": b["tokens"][:4]} for b in whole], [{"tokens": b["tokens"][4:]} for b in whole])


def test_states_of_many_readers_are_taken_over_by_others(tmp_path, tokenizer):
    data = make_data([write_texts(tmp_path / "a.jsonl", 40)], batch_size=8, shards=4)
    whole = take(data, tokenizer, 12)
    states = {}
    for rows in ([0, 1, 2, 3], [4, 5], [6, 7]):
        iterator = make_dataset(data, tokenizer, rows=rows)
        for _ in range(7):
            next(iterator)
        states |= json.loads(json.dumps(iterator.get_state()))
        iterator.close()
    assert sorted(states) == ["0", "1", "2", "3"]
    for rows in (range(8), [2, 3, 4], [7]):
        iterator = make_dataset(data, tokenizer, rows=rows)
        iterator.set_state(states)
        part = [{name: value[list(rows)] for name, value in batch.items()} for batch in whole[7:]]
        assert_same_batches([next(iterator) for _ in range(5)], part)
        iterator.close()


@pytest.mark.parametrize("count", [1, 2, 7, 4095, 4096, 5000])
def test_a_shuffle_is_a_permutation_per_epoch(count):
    documents = shuffle(grain.MapDataset.range(count), seed=5).repeat()
    epochs = [[documents[epoch * count + i] for i in range(count)] for epoch in (0, 1, 0)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert epochs[0] == epochs[2]
    if count > 6:
        assert epochs[0] != epochs[1] and epochs[0] != list(range(count))
        assert epochs[0] != [shuffle(grain.MapDataset.range(count), seed=6)[i] for i in range(count)]


def test_weights_are_shares_of_rows(tmp_path, tokenizer):
    """However long the documents: here those of one source are twenty times as long."""
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps(dict(text=f"doc{i} " + "x" * 200)) + "\n" for i in range(30)))
    sources = [dict(kind="jsonl", path=str(path), weight=3), write_pairs(tmp_path / "b.jsonl", 50) | dict(weight=1)]
    batches = take(make_data(sources), tokenizer, 60)
    prompted = np.concatenate(
        [batch["loss_mask"].min(axis=1, where=batch["segment_ids"] > 0, initial=1) for batch in batches]
    )
    assert len(prompted) == 240 and abs(int((prompted == 0).sum()) - 60) <= 1


def test_sources_are_shuffled_differently(tmp_path, tokenizer):
    rows = "".join(json.dumps(dict(text=f"doc{i} x")) + "\n" for i in range(40))
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(rows)
    sources = [dict(kind="jsonl", path=str(tmp_path / f"{name}.jsonl")) for name in "ab"]
    batches = take(make_data(sources, batch_size=2), tokenizer, 20)
    assert differ([{"tokens": b["tokens"][:1]} for b in batches], [{"tokens": b["tokens"][1:]} for b in batches])


def test_documents_that_are_not_utf8_are_passed_over(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "doc0 x"}\n{"text": "doc\xe4 x"}\n{"text": "doc2 x"}\n')
    data = make_data([dict(kind="jsonl", path=str(tmp_path / "a.jsonl"))])
    assert set(names_of(take(data, tokenizer, 3), tokenizer)) == {"doc0", "doc2"}


ODD = (
    '{"text":',
    '["text"]',
    '{"txt": "doc"}',
    '{"messages": [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "doc"}]}',
    '{"messages": [{"role": "user", "content": "doc"}]}',
    '{"messages": [{"role": "user", "content": "doc"}, {"role": "assistant", "content": null}]}',
)


def write_chats(path, good, odd=()):
    """Conversations that name themselves; each odd line stands at a place of its own among them."""
    chat = lambda i: [dict(role="user", content="?"), dict(role="assistant", content=f"doc{i} x")]  # noqa: E731
    lines = [json.dumps(dict(messages=chat(i))) for i in range(good)]
    for place, line in odd:
        lines.insert(place, line)
    path.write_text("\n".join(lines))
    return dict(kind="jsonl", path=str(path))


def test_odd_documents_are_left_out_counted_and_named(tmp_path, tokenizer, caplog):
    odd = [(50 * (i + 1), line) for i, line in enumerate(ODD)]
    source = write_chats(tmp_path / "a.jsonl", 600, [*odd, (0, '{"text": ""}')])
    data = make_data([source], packing="one_per_row", length=128, max_skipped=0.01)
    dataset = make_dataset(data, tokenizer)
    (tally,) = dataset.tallies
    assert tally.counts == dict(skipped=6, blank=1)
    assert str(tally) == f"607 documents, {tally.tokens:,} tokens, 1 blank, 6 skipped"
    for (place, _), reason in zip(odd, ("not JSON", "list, not", "no 'text'", "begins", "nothing", "content")):  # noqa: B905
        assert any(f"a.jsonl:{place + 2}: " in line and reason in line for line in caplog.messages), (place, reason)
    seen = collections.Counter(names_in(itertools.islice(dataset, 300), tokenizer))
    assert set(seen) == {f"doc{i}" for i in range(600)} and set(seen.values()) == {2}  # two epochs
    assert tally.counts == dict(skipped=6, blank=1)


def names_in(batches, tokenizer):
    """The documents of conversations in rows of their own."""
    for batch in batches:
        for tokens_L, loss_mask_L in zip(batch["tokens"], batch["loss_mask"], strict=True):
            yield tokenizer.decode(tokens_L[loss_mask_L == 1]).split(" ")[0]


def test_odd_documents_change_no_state(tmp_path, tokenizer):
    """A run that goes on behind some has not met them; its batches and its state are the same."""
    odd = [(7 * i, line) for i, line in enumerate(ODD)]
    sources = [write_chats(tmp_path / "a.jsonl", 30, odd), write_texts(tmp_path / "b.jsonl", 20)]
    data = make_data(sources, length=128, max_skipped=1.0)
    iterator = make_dataset(replace(data, seed=3), tokenizer)
    for _ in range(5):
        next(iterator)
    state = json.dumps(iterator.get_state())
    following, after = [next(iterator) for _ in range(20)], json.dumps(iterator.get_state())
    restored = make_dataset(replace(data, seed=3), tokenizer)
    restored.set_state(json.loads(state))
    assert_same_batches([next(restored) for _ in range(20)], following)
    assert json.dumps(restored.get_state()) == after
    iterator.close()
    restored.close()


def test_too_many_odd_documents_are_an_error(tmp_path, tokenizer, monkeypatch):
    odd = [(100 * i, line) for i, line in enumerate(ODD)]
    data = make_data([write_chats(tmp_path / "a.jsonl", 500, odd)], length=128, shuffle=False)
    assert make_dataset(data, tokenizer).tallies[0].counts == dict(skipped=6)
    data = replace(data, max_skipped=0.005)
    reason = r"4 of 506 documents of .*a.jsonl cannot be used, more than data.max_skipped=0.005 allows; the first: .*"
    with pytest.raises(InputError, match=reason + r"a\.jsonl:1: not JSON"):
        make_dataset(data, tokenizer)
    monkeypatch.setattr(pipeline, "TOKENS", 100)  # of a large corpus the beginning alone is looked at
    batches = make_dataset(data, tokenizer)
    with pytest.raises(InputError, match="4 of 506 documents"):
        for _ in range(500):
            next(batches)
    batches.close()


def test_of_a_large_corpus_a_sample_is_looked_at(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(pipeline, "ALL", 300)
    monkeypatch.setattr(pipeline, "SAMPLE", 50)
    half = [(2 * i, ODD[0]) for i in range(200)]
    data = make_data([write_chats(tmp_path / "a.jsonl", 200, half)], length=128, max_skipped=0.4)
    with pytest.raises(InputError, match="50 of 50 documents"):  # every eighth, and all of them odd
        make_dataset(data, tokenizer)
    data = replace(data, max_skipped=1.0)
    assert make_dataset(data, tokenizer).tallies[0].counts == dict(skipped=50)


def test_a_template_that_rewrites_makes_a_document_of_each_turn(tmp_path):
    thinking = make_tokenizer(eos_token="<|im_end|>")
    thought = "{% if m.role == 'assistant' and loop.last %}~{% endif %}{{ m.content }}"
    thinking.chat_template = CHAT_TEMPLATE.replace("{{ m['content'] }}", thought)
    turns = [dict(role=role, content=text) for role, text in zip(("user", "assistant") * 2, "abcd", strict=True)]
    (tmp_path / "a.jsonl").write_text(json.dumps(dict(messages=turns)))
    data = make_data([dict(kind="jsonl", path=str(tmp_path / "a.jsonl"))], length=128, packing="one_per_row")
    answers = set(names_in(take(data, thinking, 1), thinking))
    assert answers == {"~b<|im_end|>", "~d<|im_end|>"}


# Held-out batches


def test_held_out_batches_hold_each_document_once(tmp_path, tokenizer):
    data = make_data([write_texts(tmp_path / "a.jsonl", 51)])
    batches = list(EvalBatches(data, tokenizer))
    assert sorted(names_of(batches, tokenizer)) == sorted(f"doc{i}" for i in range(51))
    assert all(batch["tokens"].shape == (4, LENGTH) for batch in batches)
    assert_same_batches(batches, list(EvalBatches(data, tokenizer)))
    few = make_data(data.sources, eval_batches=2)
    assert_same_batches(batches[:2], list(EvalBatches(few, tokenizer)))


def test_held_out_batches_are_the_same_whoever_reads_them(tmp_path, tokenizer):
    data = make_data([write_texts(tmp_path / "a.jsonl", 51), write_pairs(tmp_path / "b.jsonl", 30)])
    whole = list(EvalBatches(data, tokenizer))
    halves = [
        list(EvalBatches(data, tokenizer, rows=rows)) for rows in (range(1), range(1, 4))
    ]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*halves, strict=True)]
    assert_same_batches(whole, joined)


# Refusals


@pytest.mark.parametrize(
    "change, reason",
    [
        (dict(length=50), "length 50 is not a positive multiple of block_length 4"),
        (dict(length=0), "length 0 is not"),
        (dict(batch_size=0), "batch_size 0 is not"),
        (dict(packing="best"), "unknown packing 'best'; known: first_fit, one_per_row"),
        (dict(sources=()), "config.data.sources is empty"),
        (dict(sources=[dict(kind="tasks", weight=0)]), "weight must be a positive number, not 0"),
        (dict(sources=[dict(kind="tasks", weight="1")]), "weight must be a positive number, not '1'"),
        (dict(sources=[dict(kind="tasks", weigth=1)]), "no field 'weigth'"),
    ],
)
def test_settings_refused(change, reason, tokenizer):
    data = make_data(**(dict(sources=[dict(kind="tasks")]) | change))
    with pytest.raises(InputError, match=reason) as caught:
        make_dataset(data, tokenizer)
    assert "\n" not in str(caught.value)


def test_block_and_shard_counts_refused(tokenizer):
    data = make_data([dict(kind="tasks")])
    with pytest.raises(InputError, match="block_length must be positive, not 0"):
        make_dataset(replace(data, block_length=0), tokenizer)
    for shards in (0, 3):
        with pytest.raises(InputError, match=f"batch_size 4 is not a positive multiple of shards {shards}"):
            make_dataset(replace(data, shards=shards), tokenizer)


def test_corpus_with_nothing_to_learn_is_refused(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text(json.dumps(dict(prompt="p" * 60, response="r")) + "\n")
    data = make_data([dict(kind="jsonl", path=str(tmp_path / "a.jsonl"))])
    with pytest.raises(InputError, match="has anything to learn in 48 tokens"):
        make_dataset(data, tokenizer)


def test_a_shard_that_would_search_for_ever_is_refused(tmp_path, tokenizer):
    """Of four documents in one order for ever each of four shards meets one."""
    rows = [dict(prompt="p" * (60 if i == 2 else 6), response="r") for i in range(4)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = make_data([dict(kind="jsonl", path=str(tmp_path / "a.jsonl"))], shards=4)
    for fine in (data, replace(data, shards=2, shuffle=False)):
        batches = make_dataset(fine, tokenizer)
        assert next(batches)["segment_ids"].max(axis=1).all()
        batches.close()
    with pytest.raises(InputError, match="one of config.data.shards=4 meets document 2 and each 4 further alone"):
        make_dataset(replace(data, shuffle=False), tokenizer)


def test_tokenizer_without_an_end_is_refused():
    from tests.data.conftest import make_tokenizer

    with pytest.raises(InputError, match="no end-of-sequence token"):
        make_dataset(make_data([dict(kind="tasks")]), make_tokenizer())
