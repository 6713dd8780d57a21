"""Where documents come from: each kind of source is opened by a function whose parameters are its config fields.

    dict(kind="text", path="corpus/**/*.txt")                              one document per file
    dict(kind="text", path="lines.txt", separator="\\n", weight=0.3)        one per line ("\\n\\n": per paragraph)
    dict(kind="jsonl", path="sft.jsonl")                                   text | prompt, response | messages
    dict(kind="parquet", path="data/", columns=dict(prompt="question", response="answer"))
    dict(kind="hf_dataset", path="saved_to_disk", split="train")
    dict(kind="tfds", path="tfds/my_corpus/1.0.0", split="train")
    dict(kind="array_record", path="tokens-*.array_record")                pre-tokenised, see array_record.py
    dict(kind="tasks", split="train", seed=0)  dict(kind="stdlib", split="train")     see tasks.py, stdlib.py

Text and JSON lines may be compressed (.gz, .bz2, .zst), and come from other systems (files.py). What JSON or a table
spells out, line ends included, is the document's own.

A source is a random-access sequence of documents (documents.py). A document that is not UTF-8 is None and counted in
`source.skipped`.
"""

import inspect
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from absl import logging

from edlm_jax.data.array_record import TokenRecords
from edlm_jax.data.documents import Document
from edlm_jax.data.files import FileParts, find_files
from edlm_jax.data.stdlib import StdlibSource
from edlm_jax.data.tasks import KINDS as TASK_KINDS
from edlm_jax.data.tasks import TaskSource
from edlm_jax.errors import InputError

COLUMNS = (("messages",), ("prompt", "response"), ("text",))  # the first whose names a row has


class Rows(Sequence):
    """A table (random access to mappings) seen as documents."""

    def __init__(self, table: Sequence, columns: Mapping[str, str], name: str):
        if columns and tuple(columns) not in COLUMNS and tuple(columns)[::-1] not in COLUMNS:
            raise InputError(f"columns of {name} must name text, prompt and response, or messages; not {dict(columns)}")
        self.table, self.columns, self.name = table, dict(columns), name
        self._not_utf8: set[int] = set()

    @property
    def skipped(self) -> int:
        """How many documents were skipped because they are not UTF-8 (those found when read: so far)."""
        return len(self._not_utf8) + (self.table.skipped if isinstance(self.table, FileParts) else 0)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Document | None:
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            return self._to_document(self._row(index), index)
        except UnicodeError:
            if index not in self._not_utf8:
                self._not_utf8.add(index)
                logging.warning("skipped document %d of %s: not UTF-8 (%d so far)", index, self.name, self.skipped)
            return None

    def _row(self, index: int) -> Mapping[str, Any]:
        return self.table[index]

    def _to_document(self, row: Mapping[str, Any], index: int) -> Document:
        columns = choose_columns(self.columns, row, f"document {index} of {self.name}")
        return {name: self._to_value(name, row[column], index) for name, column in columns.items()}

    def _to_value(self, name: str, value: Any, index: int) -> Any:
        if name == "messages":
            if isinstance(value, Mapping):  # a TFDS sequence of dicts comes as a dict of sequences
                value = [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]
            if not isinstance(value, list):
                raise InputError(f"document {index} of {self.name}: messages is {type(value).__name__}, not a list")
            return [self._to_message(message, index) for message in value]
        if isinstance(value, bytes):
            return value.decode()
        if not isinstance(value, str):
            raise InputError(f"document {index} of {self.name}: {name} is {type(value).__name__}, not text")
        value.encode()  # JSON can smuggle half a surrogate pair into a str
        return value

    def _to_message(self, message: Mapping[str, Any], index: int) -> dict[str, str]:
        if missing := {"role", "content"} - set(message):
            raise InputError(f"document {index} of {self.name} has a message without {' and '.join(sorted(missing))}")
        return {name: self._to_value(name, message[name], index) for name in ("role", "content")}


def choose_columns(columns: Mapping[str, str], names: Collection[str], what: str) -> Mapping[str, str]:
    """{field: column} of a document whose columns have these names; `columns` is what the config says, if anything."""
    known = next((fields for fields in COLUMNS if all(field in names for field in fields)), ("text",))
    columns = columns or {field: field for field in known}
    if missing := [column for column in columns.values() if column not in names]:
        raise InputError(
            f"{what} has no {missing[0]!r} but {', '.join(map(repr, names))}; "
            "set columns=dict(text=...), dict(prompt=..., response=...) or dict(messages=...)"
        )
    return columns


class JsonLines(Rows):
    """The lines of JSON files."""

    def _row(self, index: int) -> Mapping[str, Any]:
        try:
            row = json.loads(self.table[index])
        except json.JSONDecodeError as error:
            raise InputError(f"{self.table.locate(index)} is not JSON: {error.msg}") from None
        if not isinstance(row, dict):
            raise InputError(f"{self.table.locate(index)} is {type(row).__name__}, not a JSON object")
        return row


class Texts(Rows):
    """Parts of files as plain text."""

    def _row(self, index: int) -> Mapping[str, Any]:
        return dict(text=self.table[index])


def open_text(path: str, separator: str = "") -> Sequence:
    """Text files: a document per file, or per part between separators; blank ones do not count."""
    return Texts(FileParts(find_files(path, ".txt", compressed=True), separator), {}, path)


def open_jsonl(path: str, columns: Mapping = {}) -> Sequence:  # noqa: B006 (never changed)
    """JSON lines, one object per line."""
    return JsonLines(FileParts(find_files(path, ".jsonl", compressed=True), "\n"), columns, path)


def open_parquet(path: str, columns: Mapping = {}) -> Sequence:  # noqa: B006
    """Parquet files. Their text columns are held in memory; what does not fit is for hf_dataset or array_record."""
    from edlm_jax.data.tables import read_parquet

    wanted = partial(choose_columns, columns)
    return Rows(read_parquet(find_files(path, ".parquet"), wanted), columns, path)


def open_hf_dataset(path: str, split: str = "train", columns: Mapping = {}) -> Sequence:  # noqa: B006
    """A Hugging Face dataset saved with save_to_disk, memory-mapped."""
    from edlm_jax.data.tables import load_hf_dataset

    return Rows(load_hf_dataset(path, split), columns, path)


def open_tfds(path: str, split: str = "train", columns: Mapping = {}) -> Sequence:  # noqa: B006
    """A prepared TFDS version directory in the array_record format, read without TensorFlow."""
    from edlm_jax.data.tables import load_tfds

    return Rows(load_tfds(path, split), columns, path)


def open_array_record(path: str) -> Sequence:
    """Pre-tokenised documents."""
    return TokenRecords(find_files(path, ".array_record"))


def open_tasks(kinds: tuple = TASK_KINDS, split: str = "train", seed: int = 0, size: int = 1_000_000) -> Sequence:
    """Generated exact-answer tasks."""
    return TaskSource(kinds=kinds, split=split, seed=seed, size=size)


def open_stdlib(split: str = "train") -> Sequence:
    """The Python standard library's sources."""
    return StdlibSource(split=split)


OPENERS: dict[str, Callable[..., Sequence]] = {
    "text": open_text,
    "jsonl": open_jsonl,
    "parquet": open_parquet,
    "hf_dataset": open_hf_dataset,
    "tfds": open_tfds,
    "array_record": open_array_record,
    "tasks": open_tasks,
    "stdlib": open_stdlib,
}


def open_source(spec: Mapping[str, Any]) -> Sequence:
    """The documents that one entry of c.data.sources names; its weight is the mixture's business."""
    if not isinstance(spec, Mapping):
        raise InputError(f"sources are a tuple of dicts, ({{'kind': ...}},) with its comma, not {spec!r}")
    fields = {name: spec[name] for name in spec if name not in ("kind", "weight")}
    kind = spec["kind"] if "kind" in spec else None
    if kind not in OPENERS:
        raise InputError(f"unknown kind of source {kind!r}; known kinds: {', '.join(OPENERS)}")
    parameters = inspect.signature(OPENERS[kind]).parameters
    for name, value in fields.items():
        if name not in parameters:
            raise InputError(f"a {kind} source has no field {name!r}; it has {', '.join([*parameters, 'weight'])}")
        wanted = parameters[name].annotation
        if not isinstance(value, (tuple, list) if wanted is tuple else wanted) or isinstance(value, bool):
            raise InputError(f"{name} of a {kind} source must be {wanted.__name__}, not {value!r}")
    if missing := [name for name, p in parameters.items() if p.default is p.empty and name not in fields]:
        raise InputError(f"a {kind} source needs {missing[0]}")
    source = OPENERS[kind](**fields)
    if not len(source):
        raise InputError(f"no documents in {kind} source {fields}".strip())
    return source
