import json
import sys

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from edlm_jax.data.array_record import decode_record, encode_record, write_token_records
from edlm_jax.data.documents import tokenize
from edlm_jax.data.sources import OPENERS, open_source
from edlm_jax.data.tokenized import Tokenized
from edlm_jax.errors import InputError
from tests.seeds import fresh_rng

CHAT = [dict(role="user", content="hé?"), dict(role="assistant", content="ho")]


def documents(**spec):
    source = open_source(spec)
    return [source[i] for i in range(len(source))]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# Text


def test_text_one_document_per_file(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    (tmp_path / "b" / "c.txt").write_text("drü\n")
    (tmp_path / "b" / "other.md").write_text("not a .txt")
    (tmp_path / "empty.txt").write_text("")
    expected = [dict(text="one\ntwo"), dict(text="drü\n")]
    assert documents(kind="text", path=str(tmp_path)) == expected
    assert documents(kind="text", path=str(tmp_path / "**/*.txt")) == expected
    assert documents(kind="text", path=str(tmp_path / "b" / "other.md")) == [dict(text="not a .txt")]


@pytest.mark.parametrize("separator, expected", [("\n", ["a b", "ç", "d"]), ("\n\n", ["a b\nç", "d\n"])])
def test_text_in_parts(tmp_path, separator, expected):
    (tmp_path / "a.txt").write_text("a b\nç\n\nd\n")
    assert documents(kind="text", path=str(tmp_path), separator=separator) == [dict(text=text) for text in expected]


def test_text_that_is_not_utf8_is_skipped_and_counted(tmp_path, caplog):
    (tmp_path / "a.txt").write_bytes(b"good\nb\xe4d\nalso good\n\xff\n")
    source = open_source(dict(kind="text", path=str(tmp_path), separator="\n"))
    assert [source[i]["text"] for i in range(len(source))] == ["good", "also good"]
    assert source.skipped == 2
    assert "skipped 2 documents that are not UTF-8" in caplog.text


# Tables


def test_jsonl_of_each_form(tmp_path):
    rows = [dict(text="t"), dict(prompt="p", response="r", id=3), dict(messages=CHAT), dict(q="Q", a="A")]
    path = write_lines(tmp_path / "a.jsonl", rows[:3])
    assert documents(kind="jsonl", path=path) == [dict(text="t"), dict(prompt="p", response="r"), dict(messages=CHAT)]
    path = write_lines(tmp_path / "b.jsonl", rows[3:])
    columns = dict(response="a", prompt="q")
    assert documents(kind="jsonl", path=path, columns=columns) == [dict(prompt="Q", response="A")]


def test_every_field_of_a_conversation_is_kept(tmp_path):
    tools = [dict(type="function", function=dict(name="f", parameters=dict(x=None)))]
    call = dict(function=dict(name="f", arguments=dict(x=None)))
    told = [CHAT[0] | dict(name="Ada"), dict(role="assistant", content=None, tool_calls=[call], reasoning_content="?")]
    rows = [dict(messages=told, tools=tools), dict(messages=CHAT, tools=json.dumps(tools)), dict(messages=CHAT)]
    read = documents(kind="jsonl", path=write_lines(tmp_path / "a.jsonl", rows))
    del told[1]["content"]
    assert read == [dict(messages=told, tools=tools), dict(messages=CHAT, tools=tools), dict(messages=CHAT)]
    renamed = [dict(talk=row["messages"], can=row.get("tools")) for row in rows] + [dict(talk=CHAT)]
    path = write_lines(tmp_path / "b.jsonl", renamed)
    again = documents(kind="jsonl", path=path, columns=dict(messages="talk", tools="can"))
    assert again[:2] == read[:2] and again[2:] == [dict(messages=CHAT, tools=None), dict(messages=CHAT)]


def test_what_a_table_fills_in_is_nobodys_field(tmp_path):
    call = dict(name="f", arguments=dict(x="1"))
    told = [CHAT[0], dict(role="assistant", content="", calls=[call]), dict(role="tool", content="no", name="f")]
    pq.write_table(pa.table(dict(messages=[told, CHAT])), tmp_path / "a.parquet")
    assert documents(kind="parquet", path=str(tmp_path)) == [dict(messages=told), dict(messages=CHAT)]


def test_jsonl_that_is_not_utf8_is_skipped_and_counted(tmp_path, tokenizer):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\xe4"}\n\n{"text": "half a pair: \\ud800"}\n{"text": "b"}\n')
    documents = Tokenized(dict(kind="jsonl", path=str(path)), tokenizer, max_skipped=0.5)
    for _ in range(2):  # epochs
        assert [len(tokens) for tokens in documents] == [1, 0, 1]
        assert documents.tally.counts == dict(skipped=2)
    with pytest.raises(InputError, match="not UTF-8"):
        documents.source[1]


def test_parquet(tmp_path):
    pq.write_table(pa.table(dict(text=["a", "b"], other=[1, 2])), tmp_path / "0.parquet")
    pq.write_table(pa.table(dict(text=["c"], other=[3])), tmp_path / "1.parquet")
    assert documents(kind="parquet", path=str(tmp_path)) == [dict(text="a"), dict(text="b"), dict(text="c")]
    pq.write_table(pa.table(dict(messages=[CHAT, CHAT])), tmp_path / "2.parquet")
    assert documents(kind="parquet", path=str(tmp_path / "2.parquet")) == [dict(messages=CHAT)] * 2


def test_parquet_files_of_columns_and_types_of_their_own(tmp_path):
    pq.write_table(pa.table(dict(prompt=["p"], response=["r"])), tmp_path / "0.parquet")
    large = pa.array(["R", "S"], pa.large_string())
    pq.write_table(pa.table(dict(id=[1, 2], response=large, prompt=["P", "Q"])), tmp_path / "1.parquet")
    pq.write_table(pa.table(dict(text=["t"])), tmp_path / "2.parquet")
    pairs = [dict(prompt="p", response="r"), dict(prompt="P", response="R"), dict(prompt="Q", response="S")]
    assert documents(kind="parquet", path=str(tmp_path)) == [*pairs, dict(text="t")]


@pytest.mark.parametrize("columns, missing", [({}, "text"), (dict(prompt="question", response="body"), "question")])
def test_parquet_without_the_columns_says_what_it_has(columns, missing, tmp_path):
    pq.write_table(pa.table(dict(question=["a"], body=["t"])), tmp_path / "0.parquet")
    pq.write_table(pa.table(dict(body=["t"], id=[1])), tmp_path / "1.parquet")
    with pytest.raises(InputError, match=rf"[01]\.parquet has no '{missing}' but '.*', '.*'; set columns=") as caught:
        open_source(dict(kind="parquet", path=str(tmp_path), columns=columns))
    assert "\n" not in str(caught.value)


def test_parquet_that_is_not_utf8_is_skipped_and_counted(tmp_path, tokenizer):
    content = pa.array([b"a", b"\xe4", b"c"], pa.binary()).view(pa.string())
    pq.write_table(pa.table(dict(text=content)), tmp_path / "a.parquet")
    documents = Tokenized(dict(kind="parquet", path=str(tmp_path)), tokenizer)
    assert [len(tokens) for tokens in documents] == [1, 0, 1] and documents.tally.counts == dict(skipped=1)


def test_hf_dataset(tmp_path):
    train = datasets.Dataset.from_list([dict(prompt=f"p{i}", response="r") for i in range(3)])
    datasets.DatasetDict(train=train, extra=train.select([2])).save_to_disk(str(tmp_path / "both"))
    assert documents(kind="hf_dataset", path=str(tmp_path / "both"))[1] == dict(prompt="p1", response="r")
    assert documents(kind="hf_dataset", path=str(tmp_path / "both"), split="extra") == [dict(prompt="p2", response="r")]
    train.save_to_disk(str(tmp_path / "one"))
    assert len(documents(kind="hf_dataset", path=str(tmp_path / "one"))) == 3
    with pytest.raises(InputError, match="no split 'test'; it has train, extra"):
        open_source(dict(kind="hf_dataset", path=str(tmp_path / "both"), split="test"))


@pytest.fixture(scope="module")
def tfds_directory(tmp_path_factory):
    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            message = dict(role=tfds.features.Text(), content=tfds.features.Text())
            features = dict(text=tfds.features.Text(), messages=tfds.features.Sequence(message))
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            return dict(train=((i, dict(text=f"é{i}", messages=CHAT)) for i in range(5)))

        def _generate_examples(self):
            raise NotImplementedError

    builder = Tiny(data_dir=tmp_path_factory.mktemp("tfds"), file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_dir)


def test_tfds_without_tensorflow(tfds_directory):
    texts = documents(kind="tfds", path=tfds_directory, columns=dict(text="text"))
    assert sorted(d["text"] for d in texts) == [f"é{i}" for i in range(5)]
    assert documents(kind="tfds", path=tfds_directory) == [dict(messages=CHAT)] * 5
    assert len(open_source(dict(kind="tfds", path=tfds_directory, split="train[:40%]"))) == 2
    assert "tensorflow" not in sys.modules
    with pytest.raises(InputError, match="no split 'test'; it has train"):
        open_source(dict(kind="tfds", path=tfds_directory, split="test"))


# Pre-tokenised


def test_records_keep_tokens_and_loss():
    random = fresh_rng()
    tokens = random.integers(0, 152000, 37).astype(np.int32), random.integers(0, 2, 37).astype(np.int32)
    tokens[0][0] = 0
    np.testing.assert_array_equal(decode_record(encode_record(tokens)), tokens)
    assert len(encode_record(tokens)) == 4 * 37


def test_pretokenised_corpus_gives_the_same_tokens(tmp_path, tokenizer):
    rows = [dict(text="t"), dict(prompt="p", response="rr"), dict(messages=CHAT)]
    path = write_lines(tmp_path / "a.jsonl", [*rows, dict(text=""), dict(messages=CHAT[1:])])
    documents = Tokenized(dict(kind="jsonl", path=path), tokenizer)
    assert write_token_records(documents, tmp_path / "a.array_record") == 3
    assert documents.tally.counts == dict(blank=1, skipped=1)
    read = Tokenized(dict(kind="array_record", path=str(tmp_path)), tokenizer)
    assert len(read) == 3
    for row, tokens in zip(rows, read, strict=True):
        np.testing.assert_array_equal(tokens, tokenize(row, tokenizer))


# Refusals


def test_generated_kinds_open():
    for spec in (dict(kind="tasks", size=3, weight=2.0), dict(kind="tasks", split="test", seed=4)):
        assert set(open_source(spec)[0]) >= {"prompt", "response"}
    assert "text" in open_source(dict(kind="stdlib", split="test"))[0]


@pytest.mark.parametrize(
    "spec, reason",
    [
        ("kind", "with its comma, not 'kind'"),  # of ({'kind': 'text'}), a dict whose keys are taken for sources
        (dict(path="x"), "unknown kind of source None; known kinds: text, jsonl,"),
        (dict(kind="csv", path="x"), "unknown kind of source 'csv'"),
        (dict(kind=["text"], path="x"), "unknown kind of source .'text'"),
        (dict(kind="text"), "a text source needs path"),
        (dict(kind="text", path=3), "path of a text source must be str, not 3"),
        (dict(kind="text", path="x", colums={}), "a text source has no field 'colums'; it has path, separator, weight"),
        (dict(kind="text", path="/nowhere/*.txt"), "no file at /nowhere"),
        (dict(kind="tasks", size=True), "size of a tasks source must be int"),
        (dict(kind="tasks", kinds=("origami",)), "unknown task kind 'origami'"),
        (dict(kind="stdlib", split="dev"), "'dev'"),
        (dict(kind="jsonl", path=""), "the path of a source is empty"),
        (dict(kind="hf_dataset", path="/nowhere"), "no dataset saved with save_to_disk at /nowhere"),
        (dict(kind="tfds", path="/nowhere"), "no prepared TFDS version at /nowhere"),
    ],
)
def test_refused(spec, reason):
    with pytest.raises(InputError, match=reason) as caught:
        open_source(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind, suffix", [("text", "txt"), ("jsonl", "jsonl"), ("array_record", "array_record")])
def test_empty_or_missing_corpus_is_refused(kind, suffix, tmp_path):
    with pytest.raises(InputError, match="no "):
        open_source(dict(kind=kind, path=str(tmp_path)))
    (tmp_path / f"a.{suffix}").write_text("")
    with pytest.raises(InputError, match="no documents|cannot read"):
        open_source(dict(kind=kind, path=str(tmp_path)))


@pytest.mark.parametrize(
    "line, columns, reason",
    [
        ('{"text": ', {}, r"not JSON: "),
        ('{"text": "a", "id": ' + 5000 * "9" + "}", {}, r"not JSON: .* 5000 digits"),
        (100_000 * "[" + 100_000 * "]", {}, r"not JSON: "),
        ("[1]", {}, r"list, not a JSON object"),
        ('{"txt": "a"}', {}, r"it has no 'text' but 'txt'; set columns"),
        ('{"text": 5}', {}, r"text is int, not text"),
        ('{"prompt": "a", "response": null}', {}, r"response is NoneType, not text"),
        ('{"messages": [{"content": "user"}]}', {}, r"message 0 has no role"),
        ('{"messages": [{"role": "user", "content": ["a"]}]}', {}, r"content of message 0 is list, not text"),
        ('{"messages": [{"role": "user", "x": ' + 800 * "[" + 800 * "]" + "}]}", {}, r"too many brackets in brackets"),
        ('{"messages": [{"role": "user", "x": {"\\ud800": 1}}]}', {}, r"not UTF-8"),
        (r'{"messages": [], "tools": "[\"\\ud800\"]"}', {}, r"not UTF-8"),
        ('{"messages": ["user"]}', {}, r"message 0 is str, not an object"),
        ('{"messages": null}', {}, r"messages is NoneType, not a list"),
        ('{"messages": {"role": "user", "content": "hi"}}', {}, r"messages is an object of no lists of one length"),
        ('{"messages": {"role": 1}}', {}, r"messages is an object of no lists of one length, not a list"),
        ('{"messages": [], "tools": "{"}', {}, r"tools is not JSON"),
        ('{"messages": [], "tools": "' + 5000 * "9" + '"}', {}, r"tools is not JSON: .* 5000 digits"),
        ('{"messages": [], "tools": "3"}', {}, r"tools is int, not a list"),
        ('{"text": "a"}', dict(text="t"), r"has no 't'"),
        ('{"text": "a"}', dict(txt="text"), r"columns of .* must name text, prompt and response, or messages"),
    ],
)
def test_bad_rows_are_refused(line, columns, reason, tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": "good", "t": "good"}\n\n' + line + "\n")
    with pytest.raises(InputError, match=reason) as caught:
        documents = Tokenized(dict(kind="jsonl", path=str(tmp_path), columns=columns), tokenizer, max_skipped=0)
        documents[1]
    assert "\n" not in str(caught.value)
    assert "columns of" in reason or "a.jsonl:3: " in str(caught.value)


@pytest.mark.parametrize("kind, suffix", [("parquet", "parquet"), ("array_record", "array_record")])
def test_corrupt_files_are_refused(kind, suffix, tmp_path):
    (tmp_path / f"a.{suffix}").write_bytes(b"no such format" * 1000)
    with pytest.raises(InputError, match=rf"a\.{suffix}") as caught:
        open_source(dict(kind=kind, path=str(tmp_path)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damaged", ["data-00000-of-00001.arrow", "state.json"])
def test_a_damaged_hf_dataset_is_refused(damaged, tmp_path):
    datasets.Dataset.from_dict(dict(text=["a", "b"])).save_to_disk(tmp_path)
    (tmp_path / damaged).write_bytes((tmp_path / damaged).read_bytes()[:100])
    with pytest.raises(InputError, match=f"no dataset saved with save_to_disk at {tmp_path}: ") as caught:
        open_source(dict(kind="hf_dataset", path=str(tmp_path)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "{}"])
def test_a_damaged_tfds_version_is_refused(content, tmp_path):
    (tmp_path / "dataset_info.json").write_text(content)
    with pytest.raises(InputError, match="cannot read .*dataset_info.json: ") as caught:
        open_source(dict(kind="tfds", path=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_a_damaged_parquet_file_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(dict(text=["a", "b"])), path)
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(40) + content[44:])  # its footer is whole
    with pytest.raises(InputError, match=r"cannot read .*a\.parquet: ") as caught:
        open_source(dict(kind="parquet", path=str(path)))
    assert "\n" not in str(caught.value)


def test_records_that_are_no_tokens_are_skipped_and_counted(tmp_path, tokenizer):
    writer = ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
    for record in (b"text", b"texts"):
        writer.write(record)
    writer.close()
    with pytest.raises(InputError, match="a record of 5 bytes is no tokens of four bytes each"):
        open_source(dict(kind="array_record", path=str(tmp_path)))[1]
    read = Tokenized(dict(kind="array_record", path=str(tmp_path)), tokenizer, max_skipped=1.0)
    assert read[1] == [] and read.tally.counts == {"skipped": 1}


def test_every_kind_is_tried_here():
    assert set(OPENERS) == {"text", "jsonl", "parquet", "hf_dataset", "tfds", "array_record", "tasks", "stdlib"}
