"""A directory with what is in a GGUF file: config.json, the tokenizer's files, and a link to the weights."""

import functools
import json
import tempfile
from pathlib import Path

from edlm_jax.errors import InputError
from edlm_jax.pretrained.gguf.config import hf_config
from edlm_jax.pretrained.gguf.file import GgufFile, open_gguf
from edlm_jax.pretrained.gguf.tokenizer import write_tokenizer

_kept: list[tempfile.TemporaryDirectory] = []  # until the process ends


def directory_of(path: str | Path) -> Path:
    """The directory, named like the file."""
    return _write(open_gguf(path))


@functools.lru_cache(maxsize=8)
def _write(file: GgufFile) -> Path:
    _kept.append(tempfile.TemporaryDirectory(prefix="edlm-gguf-"))
    directory = Path(_kept[-1].name, file.path.name)
    directory.mkdir()
    (directory / "model.gguf").symlink_to(file.path)
    try:
        (directory / "config.json").write_text(json.dumps(hf_config(file), indent=2) + "\n", encoding="utf-8")
        if "tokenizer.ggml.model" in file.metadata:
            write_tokenizer(file, directory)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 (values of other types and lists of other lengths trip whoever reads them)
        reason = " ".join(str(error).split())
        raise InputError(f"{file.path}: its metadata do not describe a model and its tokenizer: {reason}") from None
    return directory
