"""Tables on disk that need a library of their own, imported when such a source is opened."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from edlm_jax.errors import InputError

TEXT_COLUMNS = ("text", "prompt", "response", "messages")


class ArrowTable(Sequence):
    """Random access to the rows of an Arrow table."""

    def __init__(self, table: pa.Table):
        self.table = table.combine_chunks()

    @classmethod
    def from_parquet(cls, files: list[Path], columns: Mapping[str, str]) -> "ArrowTable":
        """Read the wanted columns of Parquet files of one schema."""
        wanted = tuple(columns.values()) or TEXT_COLUMNS
        try:
            tables = [pq.read_table(f, columns=[n for n in pq.read_schema(f).names if n in wanted]) for f in files]
            return cls(pa.concat_tables(tables))
        except pa.ArrowInvalid as error:
            raise InputError(f"cannot read {files[0]}: {str(error).splitlines()[0]}") from None

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, index: int) -> dict:
        return {name: self.table.column(name)[index].as_py() for name in self.table.column_names}


def load_hf_dataset(path: str, split: str) -> Sequence:
    """A dataset saved with save_to_disk, or one split of a saved DatasetDict."""
    try:
        import datasets
    except ImportError:
        raise InputError("an hf_dataset source needs the datasets package: pip install datasets") from None
    try:
        dataset = datasets.load_from_disk(path)
    except FileNotFoundError as error:
        raise InputError(f"no dataset saved with save_to_disk at {path}: {str(error).splitlines()[0]}") from None
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise InputError(f"{path} has no split {split!r}; it has {', '.join(dataset)}")
        return dataset[split]
    return dataset


def load_tfds(path: str, split: str) -> Sequence:
    """One split of a prepared TFDS version directory (the one that holds dataset_info.json)."""
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise InputError("a tfds source needs tensorflow-datasets: pip install tensorflow-datasets") from None
    if not (Path(path) / "dataset_info.json").is_file():
        raise InputError(f"no prepared TFDS version at {path}: dataset_info.json is missing")
    builder = tfds.builder_from_directory(path)
    if split.partition("[")[0] not in builder.info.splits:
        raise InputError(f"{path} has no split {split!r}; it has {', '.join(builder.info.splits)}")
    if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise InputError(f"{path} is not in the array_record format; prepare it with file_format='array_record'")
    return builder.as_data_source(split=split)
