"""A GGUF file: its metadata and where its tensors lie. Nothing of the tensors is read before they are sliced."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edlm_jax.errors import InputError, refusing


@dataclass(frozen=True, eq=False)
class GgufFile:
    """What the gguf package found in a file."""

    path: Path
    metadata: dict[str, Any]  # general.architecture, llama.block_count, tokenizer.ggml.tokens, ...
    tensors: dict[str, Any]  # gguf.gguf_reader.ReaderTensor

    def __getitem__(self, key: str) -> Any:
        """A value of the metadata that must be there."""
        if key not in self.metadata:
            raise InputError(f"{self.path} has no {key}")
        return self.metadata[key]


def is_gguf(path: str | Path) -> bool:
    """Does a person mean a GGUF file by this, there or not?"""
    return Path(path).suffix.lower() == ".gguf" and not Path(path).expanduser().is_dir()


def open_gguf(path: str | Path) -> GgufFile:
    """The file, read once while it does not change; refuses what is truncated, in parts or of another byte order."""
    path = Path(path).expanduser().absolute()
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    status = path.stat()
    return _open(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _open(path: Path, size: int, changed: int) -> GgufFile:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise InputError(f"reading {path} needs the gguf package: pip install 'edlm_jax[gguf]', or gguf") from None
    # Where the file ends decides what the reader trips over.
    with refusing(f"{path} is truncated or not a GGUF file", Exception):
        reader = GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    if reader.byte_order != "I":
        raise InputError(f"{path} was written for machines of the other byte order")
    if metadata.get("split.count", 1) > 1:
        raise InputError(f"{path} is one of {metadata['split.count']} parts; join them by llama-gguf-split --merge")
    return GgufFile(path, metadata, {tensor.name: tensor for tensor in reader.tensors})
