"""Documents inside files: where each one lies is found once, its bytes are read when it is asked for.

Files of other systems read as if they had been written here: without a byte order mark, lines ended by "\\n".
"""

import glob
import mmap
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from edlm_jax.errors import InputError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}  # suffix and Arrow's name for it
NOT_READ = (".xz", ".lz4", ".br", ".zip", ".7z", ".rar", ".tar", ".tgz")


def decode(content: bytes, name: str | Path) -> str:
    """UTF-8 of any system as text; raises UnicodeDecodeError for other bytes, and refuses UTF-16 by `name`."""
    if content.startswith(UTF16_MARKS):
        raise InputError(f"{name} is UTF-16; convert it with iconv -f UTF-16 -t UTF-8")
    return content.removeprefix(BYTE_ORDER_MARK).decode().replace("\r\n", "\n")


def find_files(path: str, suffix: str, *, compressed: bool = False) -> list[Path]:
    """The files a source names: one file, a directory (all below it with the suffix), or a glob ("corpus/**/*.py").

    With `compressed`, files that end in .gz, .bz2 or .zst are files of the suffix, too.
    """
    if not path:  # which Path reads as the current directory
        raise InputError("the path of a source is empty")
    if Path(path).is_file():
        files = [Path(path)]
    else:
        found = _below(Path(path), suffix) if Path(path).is_dir() else map(Path, glob.glob(path, recursive=True))
        files = sorted(file for file in found if file.is_file())
    if not files:
        wanted = f"no *{suffix} file below" if Path(path).is_dir() else "no file at"
        raise InputError(f"{wanted} {path}")
    _check_compression(files, compressed)
    return files


def _below(directory: Path, suffix: str) -> Iterator[Path]:
    """The paths that end in the suffix, perhaps compressed."""
    for path in directory.rglob("*"):
        packed = path.suffix in (*COMPRESSED, *NOT_READ)
        if path.suffix == suffix or packed and Path(path.stem).suffix == suffix:
            yield path
        elif path.is_symlink() and path.is_dir():
            logging.warning("%s leads to a directory that is not read: name it, or a glob (corpus/**/*.txt)", path)


def _check_compression(files: list[Path], compressed: bool) -> None:
    """Refuses what would be read as noise, and what would be read twice."""
    known = set(files)
    for file in files:
        packed = file.suffix in COMPRESSED
        if file.suffix in NOT_READ or packed and (not compressed or Path(file.stem).suffix in NOT_READ):
            read = f", or compress it as {', '.join(COMPRESSED)}" if compressed else ""
            raise InputError(f"{file} is packed in a way that is not read: unpack it{read}")
        if packed and file.with_suffix("") in known:
            raise InputError(f"{file} and {file.with_suffix('').name} beside it would be read as two: remove one")


class FileParts(Sequence):
    """The parts of files between separators ("": whole files) that are not blank; `skipped` counts the non-UTF-8.

    Compressed files are decompressed once, one after the other, into a temporary file without a name.
    """

    def __init__(self, files: list[Path], separator: str):
        self.files, self.skipped = files, 0
        self._separator = separator.replace("\r\n", "\n").encode()
        self._unpacked = tempfile.TemporaryFile() if any(file.suffix in COMPRESSED for file in files) else None
        self._begins: dict[int, int] = {}  # where a compressed file begins in the temporary one, by its number
        parts = [(number, *span) for number in range(len(files)) for span in self._find_parts(number)]
        self._parts = np.array(parts, np.int64).reshape(-1, 3)
        if self.skipped:
            logging.warning("skipped %d documents that are not UTF-8 below %s", self.skipped, files[0].parent)

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> str:
        number, start, end = self._parts[index].tolist()
        return decode(self._read(number, start, end), self.files[number])

    def locate(self, index: int) -> str:
        """Where a part begins, as file:line, for error messages."""
        number, start, _ = self._parts[index].tolist()
        line = 1 + self._read(number, self._begins.get(number, 0), start).count(b"\n")
        return f"{self.files[number]}:{line}"

    def _read(self, number: int, start: int, end: int) -> bytes:
        if number in self._begins:
            return os.pread(self._unpacked.fileno(), end - start, start)  # moves no position that threads would share
        with self.files[number].open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def _find_parts(self, number: int) -> list[tuple[int, int]]:
        path, start = self.files[number], 0
        with path.open("rb") as file:
            if path.suffix in COMPRESSED:
                start = self._begins[number] = self._unpack(path)
                file = self._unpacked
            end = file.seek(0, os.SEEK_END)
            if start == end:
                return []
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if content[start : start + 2] in UTF16_MARKS:
                    decode(content[start : start + 2], path)  # raises
                if content[start : start + 3] == BYTE_ORDER_MARK:
                    start += 3
                cuts = [match.span() for match in self._pattern(content, start).finditer(content, start, end)]
                starts, ends = [start] + [end for _, end in cuts], [start for start, _ in cuts] + [end]
                return [span for span in zip(starts, ends, strict=True) if self._is_usable(content[slice(*span)])]

    def _unpack(self, path: Path) -> int:
        """Adds a file's content to the temporary file and returns where it begins there."""
        import pyarrow as pa  # slow to import

        start = self._unpacked.seek(0, os.SEEK_END)
        try:
            with pa.CompressedInputStream(pa.OSFile(str(path)), COMPRESSED[path.suffix]) as content:
                shutil.copyfileobj(content, self._unpacked, 2**20)
            self._unpacked.flush()
        except OSError as error:
            free = "" if error.errno is None else f" into {tempfile.gettempdir()}; TMPDIR names another place"
            raise InputError(f"cannot decompress {path}{free}: {error.strerror or error}") from None
        return start

    def _pattern(self, content: mmap.mmap, start: int) -> re.Pattern:
        """Finds separators. Looking for either kind of line end takes eight times as long as for one."""
        if not self._separator:
            return re.compile(rb"(?!)")
        line_end = rb"\r?\n" if content.find(b"\r\n", start) >= 0 else rb"\n"
        return re.compile(line_end.join(map(re.escape, self._separator.split(b"\n"))))

    def _is_usable(self, content: bytes) -> bool:
        try:
            return bool(content.decode().strip())
        except UnicodeDecodeError:
            self.skipped += 1
            return False
