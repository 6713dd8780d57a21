"""The safetensors files of a Hugging Face directory: found, opened and checked strictly, read lazily.

Pickles (.bin, .pt) are never opened: loading one runs whatever code is inside.
"""

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from edlm_jax.errors import InputError, refusing
from edlm_jax.pretrained.layout import Place
from edlm_jax.pretrained.released import rename
from edlm_jax.pretrained.source import only_gguf, read_raw_config

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_BUFFER = "rotary_emb.inv_freq"  # old checkpoints have it in each layer; left alone, as transformers does
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Checkpoint:
    """The tensors of a directory, or of one `file` there, by name; a context manager that keeps the files open."""

    dtypes = ("F32", "F16", "BF16")

    def __init__(self, directory: Path, file: str | None = None):
        self.directory, self._file = directory, file
        self._stack = contextlib.ExitStack()
        self._files: dict[str, Any] = {}  # tensor name -> the open file that holds it

    def __enter__(self) -> "Checkpoint":
        with self._stack:
            for file_name, promised in ({self._file: None} if self._file else _files(self.directory)).items():
                self._open(file_name, promised)
            self._stack = self._stack.pop_all()  # keeps the files open only when all of them opened
        return self

    def __exit__(self, *exception):
        self._stack.close()

    def _open(self, file_name: str, promised: set[str] | None) -> None:
        path = self.directory / file_name
        with refusing(f"{path} is truncated or not a safetensors file", SafetensorError, OSError):
            file = self._stack.enter_context(safe_open(path, framework="numpy"))
            names = list(file.keys())
        for name in names:
            if name in self._files:
                raise InputError(f"{self.directory}: tensor {name} is there twice, the second time in {file_name}")
            if promised is not None and name not in promised:
                raise InputError(f"{self.directory}: tensor {name} is in {file_name}, but {INDEX} does not say so")
            self._files[name] = file
        if lost := sorted((promised or set()) - set(names)):
            raise InputError(f"{self.directory}: tensor {lost[0]} is not in {file_name}, though {INDEX} says so")

    def rename(self, places: Iterable[Place]) -> list[Place]:
        """Our parameters' places under the names that they have here."""
        return rename(places, read_raw_config(self.directory), self._files)

    def check(self, shapes: Mapping[str, tuple[int, ...]], tied: bool) -> None:
        """Refuses unknown, missing, mis-shaped and mis-typed tensors, and a tied head unlike the embedding, by name."""
        extra = {_HEAD: shapes[_EMBEDDING]} if tied and _HEAD in self._files and _EMBEDDING in shapes else {}
        wanted = {**shapes, **extra}
        unknown = sorted(name for name in set(self._files) - set(wanted) if not name.endswith(_BUFFER))
        missing = [name for name in wanted if name not in self._files]
        if unknown:
            raise InputError(f"{self.directory}: unknown tensor {unknown[0]}{_and_more(unknown)}")
        if missing:
            raise InputError(f"{self.directory}: tensor {missing[0]} is missing{_and_more(missing)}")
        for name, shape in wanted.items():
            tensor, which = self[name], f"{self.directory}: tensor {name}"
            found, dtype = tuple(tensor.get_shape()), tensor.get_dtype()
            if found != shape:
                raise InputError(f"{which} has shape {found}, the config says {shape}")
            if dtype not in self.dtypes:
                raise InputError(f"{which} has dtype {dtype}; supported are {', '.join(self.dtypes)}")
        if extra and not self._same(_HEAD, _EMBEDDING):
            raise InputError(
                f"{self.directory}: {_HEAD} differs from {_EMBEDDING}, though config.json ties them; "
                "set tie_word_embeddings to false to keep both"
            )

    @property
    def metadata(self) -> dict[str, str]:
        """What the files say beside their tensors."""
        return {key: value for file in self._files.values() for key, value in (file.metadata() or {}).items()}

    def __getitem__(self, name: str) -> Any:
        """A tensor that reads only what is sliced from it."""
        return self._files[name].get_slice(name)

    def _same(self, one: str, other: str, rows: int = 4096) -> bool:
        first, second = self[one], self[other]
        if first.get_dtype() != second.get_dtype():
            return False
        count = first.get_shape()[0]
        parts = (slice(start, min(start + rows, count)) for start in range(0, count, rows))
        return all(first[part].tobytes() == second[part].tobytes() for part in parts)


def _files(directory: Path) -> dict[str, set[str] | None]:
    """File names, with the tensors that the index promises in each (None: there is no index)."""
    index = directory / INDEX
    if not index.exists():
        if (directory / SINGLE).exists():
            return {SINGLE: None}
        if pickles := sorted(path.name for suffix in ("bin", "pt", "pth") for path in directory.glob(f"*.{suffix}")):
            raise InputError(
                f"{directory} holds only pickled weights ({pickles[0]}), which are never loaded because they can run "
                "code; save them as safetensors with transformers' save_pretrained first"
            )
        raise InputError(only_gguf(directory) or f"{directory} holds neither {SINGLE} nor {INDEX}")
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files: dict[str, set[str] | None] = {}
        for tensor, file_name in weight_map.items():
            files.setdefault(file_name, set()).add(tensor)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} is not an index of safetensors files: {error!r}") from None
    for file_name in files:
        beside = isinstance(file_name, str) and Path(file_name).name == file_name
        if not beside or not file_name.endswith(".safetensors"):
            raise InputError(f"{index} points to {file_name!r}, which is not a safetensors file beside it")
        if not (directory / file_name).is_file():
            raise InputError(f"{index} points to {file_name}, which does not exist")
    if SINGLE not in files and (directory / SINGLE).exists():
        raise InputError(f"{directory} holds both {SINGLE} and {INDEX} of other files; remove the stale one")
    return dict(sorted(files.items()))


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
