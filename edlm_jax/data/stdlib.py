"""The Python standard library's own sources: text that every machine with Python has."""

import sysconfig
from collections.abc import Sequence
from pathlib import Path

from edlm_jax.data.files import decode
from edlm_jax.data.split import belongs_to_test, check_split
from edlm_jax.errors import InputError

# Tests, vendored wheels and generated tables are not prose; site-packages differs from machine to machine.
SKIPPED_DIRECTORIES = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3", "idlelib", "ensurepip", "encodings"}
)


class StdlibSource(Sequence):
    """Random access to the *.py files of a split, in the order of their paths; `skipped` counts what is not UTF-8.

    A file's name decides its split, so that it is the same for every Python version.
    """

    def __init__(self, split: str = "train", root: str | Path = ""):
        check_split(split, "standard library")
        self.root = Path(root or sysconfig.get_path("stdlib"))
        self.skipped = 0
        self._texts: list[str] = []
        relative = sorted(path.relative_to(self.root) for path in self.root.rglob("*.py"))
        for path in relative:
            if SKIPPED_DIRECTORIES.intersection(path.parts) or belongs_to_test(path.as_posix()) != (split == "test"):
                continue
            try:
                text = decode((self.root / path).read_bytes(), path)
            except UnicodeDecodeError:
                self.skipped += 1
                continue
            if text.strip():
                self._texts.append(text)
        if not self._texts:
            raise InputError(f"no Python sources of the {split} split below {self.root}")

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> dict[str, str]:
        return dict(text=self._texts[index])
