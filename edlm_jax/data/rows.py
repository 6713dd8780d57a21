"""Rows of tables and lines of JSON files seen as documents; what they hold is checked when they are asked for."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from edlm_jax.data.documents import Document
from edlm_jax.data.files import FileParts, find_files
from edlm_jax.errors import InputError, refusing

COLUMNS = (("messages",), ("prompt", "response"), ("text",))  # the first whose names a row has
TOOLS = "tools"  # beside messages: the functions that the assistant may call, where a conversation has them
_CALLED = {str: "text", list: "a list", Mapping: "an object"}


class Rows(Sequence):
    """A table (random access to mappings) seen as documents."""

    nulls = False  # are what a table fills in: fields that other rows have

    def __init__(self, table: Sequence, columns: Mapping[str, str], name: str):
        if columns and set(columns) not in (*map(set, COLUMNS), {"messages", TOOLS}):
            raise InputError(f"columns of {name} must name text, prompt and response, or messages; not {dict(columns)}")
        self.table, self.columns, self.name = table, dict(columns), name

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Document:
        index = range(len(self))[index]  # tables know no IndexError
        with refusing("not UTF-8", UnicodeError), refusing("too many brackets in brackets", RecursionError):
            row = self.read(index)
            wanted = {name: column for name, column in self.columns.items() if name != TOOLS or column in row}
            columns = choose_columns(wanted, row, "it")
            return {name: self._to_value(name, row[column]) for name, column in columns.items()}

    def locate(self, index: int) -> str:
        """Where a document stands, for messages."""
        return f"document {index} of {self.name}"

    def read(self, index: int) -> Mapping[str, Any]:
        """A row as it stands."""
        return self.table[index]

    def _to_value(self, name: str, value: Any) -> Any:
        value = _plain(value, self.nulls)
        if name == TOOLS:
            return _to_tools(value)
        if name == "messages":
            if isinstance(value, Mapping):  # a TFDS sequence of dicts comes as a dict of sequences
                with refusing("messages is an object of no lists of one length, not a list", TypeError, ValueError):
                    value = [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]
            return [_to_message(number, message) for number, message in enumerate(_need(list, value, name))]
        return _need(str, value, name)


class JsonLines(Rows):
    """The lines of JSON files."""

    nulls = True  # are the document's own

    def __init__(self, path: str, columns: Mapping = {}):  # noqa: B006 (never changed)
        lines = FileParts(find_files(path, ".jsonl", compressed=True), "\n")
        super().__init__(lines, columns, path)
        self.skipped, self.locate = lines.skipped, lines.locate

    def read(self, index: int) -> Mapping[str, Any]:
        row = _parse(self.table[index], "")
        if not isinstance(row, dict):
            raise InputError(f"{type(row).__name__}, not a JSON object")
        return row


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
    message = _need(Mapping, message, f"message {number}")
    fields = {name: value for name, value in message.items() if value is not None}
    for name in ("role", "content"):
        if name in fields:
            _need(str, fields[name], f"{name} of message {number}")
    if "role" not in fields:
        raise InputError(f"message {number} has no role")
    return fields


def _to_tools(value: Any) -> list | None:
    """The functions that an assistant may call: a list, or JSON of one."""
    if isinstance(value, str):
        value = _plain(_parse(value or "null", "tools is "), nulls=True)
    return value if value is None else _need(list, value, "tools")


def _need(kind: type, value: Any, what: str) -> Any:
    if not isinstance(value, kind):
        raise InputError(f"{what} is {type(value).__name__}, not {_CALLED[kind]}")
    return value


def _parse(text: str, what: str) -> Any:
    """JSON; InputError also for what Python cannot read: thousands of digits or of brackets in brackets."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what}not JSON: {getattr(error, 'msg', error)}") from None
