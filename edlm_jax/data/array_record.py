"""Pre-tokenised corpora: ArrayRecord files whose record is one document.

A record is the document's tokens as little-endian int32. A token t without loss (a prompt's) is stored as ~t = -1 - t,
so that a record needs no header and can be read with `np.frombuffer(record, "<i4")`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from edlm_jax.data.documents import Document, Tokens
from edlm_jax.data.files import find_files
from edlm_jax.errors import InputError, refusing


def encode_record(tokens: Tokens) -> bytes:
    """One document's record."""
    tokens_L, loss_mask_L = tokens
    return np.where(loss_mask_L > 0, tokens_L, ~tokens_L).astype("<i4").tobytes()


def decode_record(record: bytes) -> Tokens:
    """The inverse of encode_record; InputError for what it did not write."""
    if len(record) % 4:
        raise InputError(f"a record of {len(record)} bytes is no tokens of four bytes each")
    stored_L = np.frombuffer(record, "<i4")
    learned_L = stored_L >= 0
    return np.where(learned_L, stored_L, ~stored_L).astype(np.int32), learned_L.astype(np.int32)


def write_token_records(documents: Iterable[list[Tokens]], path: str | Path) -> int:
    """What documents became (tokenized.py) into one ArrayRecord file; returns how many records were written."""
    # Group size 1: every record can be reached without decompressing its neighbours.
    writer, count = ArrayRecordWriter(str(path), "group_size:1"), 0
    for tokens in documents:
        for one in tokens:
            writer.write(encode_record(one))
            count += 1
    writer.close()
    return count


class TokenRecords(Sequence):
    """The documents of pre-tokenised ArrayRecord files."""

    def __init__(self, path: str):
        files = find_files(path, ".array_record")
        names = ", ".join(file.name for file in files)
        with refusing(f"cannot read {names} in {files[0].parent} as ArrayRecord", RuntimeError):
            self._records = grain.sources.ArrayRecordDataSource([str(file) for file in files])

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Document:
        tokens_L, loss_mask_L = decode_record(self._records[range(len(self))[index]])
        return dict(tokens=tokens_L, loss_mask=loss_mask_L)
