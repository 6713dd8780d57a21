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

import bisect
import inspect
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edlm_jax.data.array_record import TokenRecords
from edlm_jax.data.documents import Document
from edlm_jax.data.files import FileParts, find_files
from edlm_jax.data.rows import JsonLines, Rows, choose_columns
from edlm_jax.data.stdlib import StdlibSource
from edlm_jax.data.tasks import TaskSource
from edlm_jax.errors import InputError, refusing


class Texts(FileParts):
    """Text files: a document per file, or per part between separators; blank ones do not count."""

    def __init__(self, path: str, separator: str = ""):
        super().__init__(find_files(path, ".txt", compressed=True), separator)

    def __getitem__(self, index: int) -> Document:
        return dict(text=super().__getitem__(index))


class ArrowTable(Sequence):
    """Random access to the rows of Arrow tables, one after the other; each may have columns and types of its own."""

    def __init__(self, tables: Sequence[Any]):
        self._tables = [table.combine_chunks() for table in tables]
        self._ends = list(itertools.accumulate(table.num_rows for table in tables))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict:
        number = bisect.bisect_right(self._ends, index)
        table, row = self._tables[number], index - self._ends[number]  # from its end
        return {name: table.column(name)[row].as_py() for name in table.column_names}


def open_parquet(path: str, columns: Mapping = {}) -> Sequence:  # noqa: B006 (never changed)
    """Parquet files. Their text columns are held in memory; what does not fit is for hf_dataset or array_record."""
    import pyarrow as pa  # slow to import, as what other tables are read by
    import pyarrow.parquet as pq

    tables = []
    for file in find_files(path, ".parquet"):
        with refusing(f"cannot read {file}", pa.ArrowException, OSError):  # a damaged one is either
            names = pq.read_schema(file).names
            wanted = choose_columns(columns, names, str(file)).values()
            tables.append(pq.read_table(file, columns=[name for name in names if name in wanted]))
    return Rows(ArrowTable(tables), columns, path)


def open_hf_dataset(path: str, split: str = "train", columns: Mapping = {}) -> Sequence:  # noqa: B006
    """A dataset saved with save_to_disk, or one split of a saved DatasetDict, memory-mapped."""
    import datasets

    with refusing(f"no dataset saved with save_to_disk at {path}", OSError, ValueError):  # a damaged one is either
        dataset = datasets.load_from_disk(path)
    if isinstance(dataset, datasets.DatasetDict):
        _check_split(path, split, dataset)
        dataset = dataset[split]
    return Rows(dataset, columns, path)


def open_tfds(path: str, split: str = "train", columns: Mapping = {}) -> Sequence:  # noqa: B006
    """One split of a prepared TFDS version directory (the one that holds dataset_info.json), without TensorFlow."""
    import tensorflow_datasets as tfds

    if not (Path(path) / "dataset_info.json").is_file():
        raise InputError(f"no prepared TFDS version at {path}: dataset_info.json is missing")
    with refusing(f"cannot read {path}/dataset_info.json", Exception):  # whatever the parsers of its files raise
        builder = tfds.builder_from_directory(path)
    _check_split(path, split.partition("[")[0], builder.info.splits)
    if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise InputError(f"{path} is not in the array_record format; prepare it with file_format='array_record'")
    return Rows(builder.as_data_source(split=split), columns, path)


def _check_split(path: str, split: str, known: Collection[str]) -> None:
    if split not in known:
        raise InputError(f"{path} has no split {split!r}; it has {', '.join(known)}")


OPENERS: dict[str, Callable[..., Sequence]] = {
    "text": Texts,
    "jsonl": JsonLines,
    "parquet": open_parquet,
    "hf_dataset": open_hf_dataset,
    "tfds": open_tfds,
    "array_record": TokenRecords,
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
    lines = JsonLines(path)
    for index in range(len(lines)):
        try:
            yield lines.locate(index), lines.read(index)
        except InputError as error:
            raise InputError(f"{lines.locate(index)}: {error}") from None
