"""The Python standard library's own sources: text that every machine with Python has."""

import sysconfig
from pathlib import Path

from edlm_jax.data.files import FileParts
from edlm_jax.data.split import belongs_to_test, check_split
from edlm_jax.errors import InputError

# Tests, vendored wheels and generated tables are not prose; site-packages differs from machine to machine.
SKIPPED_DIRECTORIES = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3", "idlelib", "ensurepip", "encodings"}
)


class StdlibSource(FileParts):
    """Random access to the *.py files of a split, in the order of their paths.

    A file's name decides its split, so that it is the same for every Python version.
    """

    def __init__(self, split: str = "train"):
        check_split(split, "standard library")
        root = Path(sysconfig.get_path("stdlib"))
        paths = sorted(path.relative_to(root) for path in root.rglob("*.py"))
        paths = [path for path in paths if not SKIPPED_DIRECTORIES.intersection(path.parts)]
        super().__init__([root / path for path in paths if belongs_to_test(path.as_posix()) == (split == "test")], "")
        if not len(self):
            raise InputError(f"no Python sources of the {split} split below {root}")

    def __getitem__(self, index: int) -> dict[str, str]:
        return dict(text=super().__getitem__(index))
