"""Where documents come from: each kind of source is opened by a function whose parameters are its config fields.

    dict(kind="text", path="corpus/**/*.txt")                              one document per file
    dict(kind="text", path="lines.txt", separator="\\n", weight=0.3)        one per line ("\\n\\n": per paragraph)
    dict(kind="jsonl", path="sft.jsonl")                                   text | prompt, response | messages, tools
    dict(kind="parquet", path="data/", columns=dict(prompt="question", response="answer"))
    dict(kind="hf_dataset", path="saved_to_disk", split="train")
    dict(kind="tfds", path="tfds/my_corpus/1.0.0", split="train")
    dict(kind="array_record", path="tokens-*.array_record")                pre-tokenised, see array_record.py
    dict(kind="tasks", split="train", seed=0)  dict(kind="stdlib", split="train")     see tasks.py, stdlib.py

Text and JSON lines may be compressed (.gz, .bz2, .zst), and come from other systems (files.py). What JSON or a table
spells out, line ends included, is the document's own.

A source is a random-access sequence of documents (documents.py). One that cannot be read raises an InputError when it
is asked for; `locate` says which it is. Parts of files that are not UTF-8 are left out and counted in `source.skipped`.
"""

import inspect
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from edlm_jax.data.array_record import TokenRecords
from edlm_jax.data.documents import Document
from edlm_jax.data.files import FileParts, find_files
from edlm_jax.data.stdlib import StdlibSource
from edlm_jax.data.tasks import TaskSource
from edlm_jax.errors import InputError

COLUMNS = (("messages",), ("prompt", "response"), ("text",))  # the first whose names a row has
TOOLS = "tools"  # beside messages: the functions that the assistant may call, where a conversation has them


class Rows(Sequence):
    """A table (random access to mappings) seen as documents."""

    nulls = False  # are what a table fills in: fields that other rows have

    def __init__(self, table: Sequence, columns: Mapping[str, str], name: str):
        if columns and set(columns) not in (*map(set, COLUMNS), {"messages", TOOLS}):
            raise InputError(f"columns of {name} must name text, prompt and response, or messages; not {dict(columns)}")
        self.table, self.columns, self.name = table, dict(columns), name

    @property
    def skipped(self) -> int:
        """How many documents were left out when the files were opened, because they are not UTF-8."""
        return self.table.skipped if isinstance(self.table, FileParts) else 0

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Document:
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            row = self.read(index)
            wanted = {name: column for name, column in self.columns.items() if name != TOOLS or column in row}
            columns = choose_columns(wanted, row, "it")
            return {name: self._to_value(name, row[column]) for name, column in columns.items()}
        except UnicodeError:
            raise InputError("not UTF-8") from None
        except RecursionError:
            raise InputError("too many brackets in brackets") from None

    def locate(self, index: int) -> str:
        """Where a document stands, for messages."""
        located = isinstance(self.table, FileParts)
        return self.table.locate(index) if located else f"document {index} of {self.name}"

    def read(self, index: int) -> Mapping[str, Any]:
        """A row as it stands."""
        return self.table[index]

    def _to_value(self, name: str, value: Any) -> Any:
        value = _plain(value, self.nulls)
        if name == TOOLS:
            return _to_tools(value)
        if name == "messages":
            if isinstance(value, Mapping):  # a TFDS sequence of dicts comes as a dict of sequences
                try:
                    value = [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]
                except (TypeError, ValueError):
                    raise InputError("messages is an object of no lists of one length, not a list") from None
            if not isinstance(value, list):
                raise InputError(f"messages is {type(value).__name__}, not a list")
            return [_to_message(number, message) for number, message in enumerate(value)]
        if not isinstance(value, str):
            raise InputError(f"{name} is {type(value).__name__}, not text")
        return value


def _plain(value: Any, nulls: bool) -> Any:
    """The value with bytes as text, all of it seen to be UTF-8; without `nulls` also without fields of None."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, str):
        value.encode()  # JSON can smuggle half a surrogate pair into a str
        return value
    if isinstance(value, Mapping):
        kept = {name: item for name, item in value.items() if nulls or item is not None}
        return {_plain(name, nulls): _plain(item, nulls) for name, item in kept.items()}
    return [_plain(item, nulls) for item in value] if isinstance(value, list | tuple | np.ndarray) else value


def _to_message(number: int, message: Any) -> dict[str, Any]:
    """A message with all of its fields; those of None are left out, as a template may ask whether there is one."""
    if not isinstance(message, Mapping):
        raise InputError(f"message {number} is {type(message).__name__}, not an object")
    fields = {name: value for name, value in message.items() if value is not None}
    for name in ("role", "content"):
        if name in fields and not isinstance(fields[name], str):
            raise InputError(f"{name} of message {number} is {type(fields[name]).__name__}, not text")
    if "role" not in fields:
        raise InputError(f"message {number} has no role")
    return fields


def _to_tools(value: Any) -> list | None:
    """The functions that an assistant may call: a list, or JSON of one."""
    if isinstance(value, str):
        value = _plain(_parse(value or "null", "tools is "), nulls=True)
    if value is not None and not isinstance(value, list):
        raise InputError(f"tools is {type(value).__name__}, not a list")
    return value


def _parse(text: str, what: str) -> Any:
    """JSON; InputError also for what Python cannot read: thousands of digits or of brackets in brackets."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what}not JSON: {getattr(error, 'msg', error)}") from None


def choose_columns(columns: Mapping[str, str], names: Collection[str], what: str) -> Mapping[str, str]:
    """{field: column} of a document whose columns have these names; `columns` is what the config says, if anything."""
    known = next((fields for fields in COLUMNS if all(field in names for field in fields)), ("text",))
    known += (TOOLS,) if "messages" in known and TOOLS in names else ()
    columns = columns or {field: field for field in known}
    if missing := [column for column in columns.values() if column not in names]:
        raise InputError(
            f"{what} has no {missing[0]!r} but {', '.join(map(repr, names))}; "
            "set columns=dict(text=...), dict(prompt=..., response=...) or dict(messages=...)"
        )
    return columns


class JsonLines(Rows):
    """The lines of JSON files."""

    nulls = True  # are the document's own

    def read(self, index: int) -> Mapping[str, Any]:
        row = _parse(self.table[index], "")
        if not isinstance(row, dict):
            raise InputError(f"{type(row).__name__}, not a JSON object")
        return row


class Texts(Rows):
    """Parts of files as plain text."""

    def read(self, index: int) -> Mapping[str, Any]:
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


OPENERS: dict[str, Callable[..., Sequence]] = {
    "text": open_text,
    "jsonl": open_jsonl,
    "parquet": open_parquet,
    "hf_dataset": open_hf_dataset,
    "tfds": open_tfds,
    "array_record": open_array_record,
    "tasks": TaskSource,
    "stdlib": StdlibSource,
}


def open_source(spec: Mapping[str, Any]) -> Sequence:
    """The documents that one entry of config.data.sources names; its weight is the mixture's business."""
    if not isinstance(spec, Mapping):
        raise InputError(f"sources are a tuple of dicts, ({{'kind': ...}},) with its comma, not {spec!r}")
    fields = {name: spec[name] for name in spec if name not in ("kind", "weight")}
    kind = spec["kind"] if "kind" in spec else None
    if not isinstance(kind, str) or kind not in OPENERS:
        raise InputError(f"unknown kind of source {kind!r}; known kinds: {', '.join(OPENERS)}")
    check_fields(inspect.signature(OPENERS[kind]).parameters.values(), fields, f"a {kind} source", ["weight"])
    source = OPENERS[kind](**fields)
    if not len(source):
        raise InputError(f"no documents in {kind} source {fields}".strip())
    return source


def check_fields(
    parameters: Iterable[inspect.Parameter], fields: Mapping[str, Any], what: str, others: Sequence[str] = ()
) -> None:
    """Raises InputError for fields of a config's entry that are not the parameters of the function that reads it."""
    known = {parameter.name: parameter for parameter in parameters}
    for name, value in fields.items():
        if name not in known:
            raise InputError(f"{what} has no field {name!r}; it has {', '.join([*known, *others])}")
        wanted = known[name].annotation
        if not isinstance(value, _ALSO.get(wanted, wanted)) or isinstance(value, bool):
            raise InputError(f"{name} of {what} must be {wanted.__name__}, not {value!r}")
    if missing := [name for name, p in known.items() if p.default is p.empty and name not in fields]:
        raise InputError(f"{what} needs {missing[0]}")


_ALSO = {tuple: (tuple, list), float: (float, int)}  # what else may stand for a type


def read_objects(path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where it stands, the object) of each line of JSON files; InputError for a line that is none."""
    lines = open_jsonl(path)
    for index in range(len(lines)):
        try:
            yield lines.locate(index), lines.read(index)
        except InputError as error:
            raise InputError(f"{lines.locate(index)}: {error}") from None
