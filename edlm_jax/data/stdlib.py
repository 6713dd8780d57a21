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

    def __init__(self, split: str = "train"):
        check_split(split, "standard library")
        root, self.skipped = Path(sysconfig.get_path("stdlib")), 0
        self._texts: list[str] = []
        for path in sorted(path.relative_to(root) for path in root.rglob("*.py")):
            if SKIPPED_DIRECTORIES.intersection(path.parts) or belongs_to_test(path.as_posix()) != (split == "test"):
                continue
            try:
                self._texts.append(decode((root / path).read_bytes(), path))
            except UnicodeDecodeError:
                self.skipped += 1
        self._texts = [text for text in self._texts if text.strip()]
        if not self._texts:
            raise InputError(f"no Python sources of the {split} split below {root}")

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> dict[str, str]:
        return dict(text=self._texts[index])
