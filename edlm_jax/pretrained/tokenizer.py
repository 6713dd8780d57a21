"""The tokenizer that lies beside the weights."""

from pathlib import Path
from typing import TYPE_CHECKING

from edlm_jax.errors import InputError
from edlm_jax.pretrained.source import find_directory, read_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(path_or_repo: str | Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model directory; refused when it knows tokens that the model has no embedding for."""
    from transformers import AutoTokenizer  # slow to import

    directory = find_directory(path_or_repo)
    vocab_size = read_config(directory).get("vocab_size")
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise InputError(f"{directory} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json)")
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # transformers raises whatever the file's parser does
        reason = " ".join(str(error).split())
        raise InputError(f"{directory}: its tokenizer cannot be loaded: {reason}") from None
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if not isinstance(vocab_size, int) or largest >= vocab_size:
        raise InputError(
            f"{directory}: the tokenizer has ids up to {largest}, the model's vocabulary ends at {vocab_size}; "
            "this tokenizer belongs to another model"
        )
    # Said already, so not to be said again: rows are cut here, and prompts that are too long refused, by us.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer
