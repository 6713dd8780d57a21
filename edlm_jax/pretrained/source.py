"""From what a person typed (a directory, a GGUF file, a hub id or smollm2) to a directory with a config.json."""

import functools
import re
from pathlib import Path
from typing import Any

from edlm_jax.errors import InputError, refusing
from edlm_jax.files import read_json
from edlm_jax.pretrained import bundled
from edlm_jax.pretrained.gguf import directory_of
from edlm_jax.pretrained.gguf.file import is_gguf
from edlm_jax.pretrained.released import translate

# Beside config.json and the weights, what makes a checkpoint usable: copied on export, downloaded with a hub id. Never
# a .py: no code of a model's directory runs.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.*.json"),  # the last: of one version of transformers
    *("special_tokens_map.json", "added_tokens.json", "normalizer.json", "tekken.json", "generation_config.json"),
    *("vocab*", "merges.txt"),  # vocab.json, .txt, .bpe
    *("*.model", "tokenizer.model.*", "*.spm", "*.tiktoken"),  # of SentencePiece or tiktoken; Mistral's versions
    *("chat_template.json", "*.jinja", "additional_chat_templates/*.jinja"),
)
_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "adapter/adapter_*")  # the last: a drafter
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def find_directory(path_or_repo: str | Path, *, weights: bool = True) -> Path:
    """The directory itself, or the local snapshot of a hub id such as Qwen/Qwen3-0.6B, `weights` included or not.

    Of a GGUF file, all but its weights, and so of `smollm2`.
    """
    if bundled.is_bundled(path_or_repo):
        return bundled.smollm2_directory()
    if is_gguf(path_or_repo):
        return directory_of(path_or_repo)
    directory = Path(path_or_repo).expanduser()
    if directory.is_dir() and path_or_repo != "":  # which Path reads as the current directory
        return directory
    if directory.exists() or not _HUB_ID.fullmatch(str(path_or_repo)):
        known = f"a directory nor a hub id such as Qwen/Qwen3-0.6B, nor a .gguf file, nor {bundled.NAME}"
        raise InputError(f"{path_or_repo or repr('')} is neither {known}")
    return _download(str(path_or_repo), weights)


def find_gguf(path_or_repo: str | Path) -> Path | None:
    """The GGUF file that holds the weights of what a person means; None: a directory holds them."""
    if bundled.is_bundled(path_or_repo):
        return bundled.smollm2_weights()
    return Path(path_or_repo) if is_gguf(path_or_repo) else None


def read_config(directory: Path) -> dict[str, Any]:
    """The directory's config.json as one of the families has it; of a released diffusion model, with its conversion."""
    return translate(read_raw_config(directory))


def read_raw_config(directory: Path) -> dict[str, Any]:
    """The dictionary in the directory's config.json."""
    path = directory / "config.json"
    if (directory / "model.json").is_file():  # what training leaves
        exported = directory / "model"
        hint = f"use {exported}" if exported.is_dir() else f"edlm export --workdir={directory} writes one"
        raise InputError(f"{directory} is a work directory and not a model; {hint}")
    if not path.is_file():
        reason = f"{directory} is not a Hugging Face model directory: it has no config.json"
        raise InputError(only_gguf(directory) or reason)
    return read_json(path)


def only_gguf(directory: Path) -> str:
    """What to do with a directory that holds GGUF files in place of safetensors; "" where it holds none."""
    files = sorted(directory.glob("*.gguf"))
    return f"{directory} holds its weights as GGUF: give the file itself, {files[0]}" if files else ""


@functools.cache  # one snapshot for as long as the process runs: a run reads its first weights more than once
def _download(repo: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["config.json", *(_WEIGHTS if weights else ()), *TOKENIZER_FILES]
    with refusing(f"{repo} is not a directory here, and downloading it failed", OSError):  # as all of the hub's are
        return Path(snapshot_download(repo, allow_patterns=patterns))
