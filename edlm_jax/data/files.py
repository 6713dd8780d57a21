"""Documents inside files: where each one lies is found once, its bytes are read when it is asked for."""

import glob
import mmap
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from edlm_jax.errors import InputError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def find_files(path: str, suffix: str) -> list[Path]:
    """The files a source names: one file, a directory (all below it with the suffix), or a glob ("corpus/**/*.py")."""
    if Path(path).is_file():
        return [Path(path)]
    found = Path(path).rglob(f"*{suffix}") if Path(path).is_dir() else map(Path, glob.glob(path, recursive=True))
    files = sorted(file for file in found if file.is_file())
    if not files:
        wanted = f"no *{suffix} file below" if Path(path).is_dir() else "no file at"
        raise InputError(f"{wanted} {path}")
    return files


class FileParts(Sequence):
    """The parts of files between separators ("": whole files) that are not blank; `skipped` counts the non-UTF-8."""

    def __init__(self, files: list[Path], separator: str):
        self.files, self.skipped = files, 0
        parts = [
            (number, start, end)
            for number, file in enumerate(files)
            if file.stat().st_size
            for start, end in self._find_parts(file, separator.encode())
        ]
        self._parts = np.array(parts, np.int64).reshape(-1, 3)
        if self.skipped:
            logging.warning("skipped %d documents that are not UTF-8 below %s", self.skipped, files[0].parent)

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> str:
        number, start, end = self._parts[index]
        with self.files[number].open("rb") as file:
            file.seek(start)
            return file.read(end - start).decode()

    def locate(self, index: int) -> str:
        """Where a part begins, as file:line, for error messages."""
        number, start, _ = self._parts[index]
        with self.files[number].open("rb") as file:
            line = 1 + file.read(start).count(b"\n")
        return f"{self.files[number]}:{line}"

    def _find_parts(self, path: Path, separator: bytes) -> list[tuple[int, int]]:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = len(BYTE_ORDER_MARK) if content[:3] == BYTE_ORDER_MARK else 0
            cuts = [match.span() for match in re.finditer(re.escape(separator), content)] if separator else []
            starts, ends = [start] + [end for _, end in cuts], [start for start, _ in cuts] + [len(content)]
            return [span for span in zip(starts, ends, strict=True) if self._is_usable(content[slice(*span)])]

    def _is_usable(self, content: bytes) -> bool:
        try:
            return bool(content.decode().strip())
        except UnicodeDecodeError:
            self.skipped += 1
            return False
