"""Tables on disk; what is slow to import is imported when such a source is opened."""

import bisect
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from edlm_jax.errors import InputError


class ArrowTable(Sequence):
    """Random access to the rows of Arrow tables, one after the other; each may have columns and types of its own."""

    def __init__(self, tables: Sequence[pa.Table]):
        self._tables = [table.combine_chunks() for table in tables]
        self._ends = list(itertools.accumulate(table.num_rows for table in tables))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict:
        number = bisect.bisect_right(self._ends, index)
        table, row = self._tables[number], index - self._ends[number]  # from its end
        return {name: table.column(name)[row].as_py() for name in table.column_names}


def read_parquet(files: list[Path], choose_columns: Callable[[list[str], str], Mapping[str, str]]) -> ArrowTable:
    """The columns of Parquet files that `choose_columns(names, file)` wants of each."""
    tables = []
    for file in files:
        try:
            names = pq.read_schema(file).names
            wanted = choose_columns(names, str(file)).values()
            tables.append(pq.read_table(file, columns=[name for name in names if name in wanted]))
        except (pa.ArrowException, OSError) as error:  # a damaged one is either
            raise InputError(f"cannot read {file}: {str(error).splitlines()[0]}") from None
    return ArrowTable(tables)


def load_hf_dataset(path: str, split: str) -> Sequence:
    """A dataset saved with save_to_disk, or one split of a saved DatasetDict."""
    import datasets

    try:
        dataset = datasets.load_from_disk(path)
    except (OSError, ValueError) as error:  # damaged JSON or Arrow is the latter
        raise InputError(f"no dataset saved with save_to_disk at {path}: {str(error).splitlines()[0]}") from None
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise InputError(f"{path} has no split {split!r}; it has {', '.join(dataset)}")
        return dataset[split]
    return dataset


def load_tfds(path: str, split: str) -> Sequence:
    """One split of a prepared TFDS version directory (the one that holds dataset_info.json)."""
    import tensorflow_datasets as tfds

    if not (Path(path) / "dataset_info.json").is_file():
        raise InputError(f"no prepared TFDS version at {path}: dataset_info.json is missing")
    try:
        builder = tfds.builder_from_directory(path)
    except Exception as error:  # noqa: BLE001 (whatever the parsers of its files raise)
        raise InputError(f"cannot read {path}/dataset_info.json: {str(error).splitlines()[0]}") from None
    if split.partition("[")[0] not in builder.info.splits:
        raise InputError(f"{path} has no split {split!r}; it has {', '.join(builder.info.splits)}")
    if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise InputError(f"{path} is not in the array_record format; prepare it with file_format='array_record'")
    return builder.as_data_source(split=split)
