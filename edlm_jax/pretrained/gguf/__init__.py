"""GGUF files, as llama.cpp's tools write them, read as the Hugging Face directories that they were made from."""

import functools
import json
import tempfile
from pathlib import Path

from edlm_jax.errors import refusing
from edlm_jax.files import read_json
from edlm_jax.pretrained.gguf.config import hf_config
from edlm_jax.pretrained.gguf.file import GgufFile, open_gguf
from edlm_jax.pretrained.gguf.tokenizer import write_tokenizer

_kept: list[tempfile.TemporaryDirectory] = []  # until the process ends


def directory_of(path: str | Path, beside: Path | None = None) -> Path:
    """A directory with what is in a GGUF file: config.json, the tokenizer's files, and a link to the weights.

    What lies in `beside` comes along: `adapter/`, a drafter, and edlm.json, how the model was converted for it.
    """
    return _write(open_gguf(path), beside)


@functools.lru_cache(maxsize=8)
def _write(file: GgufFile, beside: Path | None) -> Path:
    _kept.append(tempfile.TemporaryDirectory(prefix="edlm-gguf-"))
    directory = Path(_kept[-1].name, file.path.name)
    directory.mkdir()
    (directory / "model.gguf").symlink_to(file.path)
    # Values of other types and lists of other lengths trip whoever reads them.
    with refusing(f"{file.path}: its metadata do not describe a model and its tokenizer", Exception):
        config = hf_config(file) | ({"edlm": read_json(beside / "edlm.json")} if beside else {})
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if "tokenizer.ggml.model" in file.metadata:
            write_tokenizer(file, directory)
    if beside:
        (directory / "adapter").symlink_to(beside / "adapter")
    return directory
