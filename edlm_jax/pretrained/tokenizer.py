"""The tokenizer that lies beside the weights, or alone. Code that lies there, too, never runs, and nobody is asked."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from edlm_jax.errors import InputError
from edlm_jax.files import read_json
from edlm_jax.pretrained.source import find_directory, read_config
from edlm_jax.pretrained.tokenizer_files import WHOLE, stand_in

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken", "tekken.json")


def load_tokenizer(path_or_repo: str | Path, vocab_size: int | None = None) -> "PreTrainedTokenizerBase":
    """The tokenizer of a directory; refused when it knows tokens that the model has no embedding for.

    `vocab_size` is the model's; None: what the config.json beside the tokenizer says.
    """
    directory = find_directory(path_or_repo, weights=False)
    if vocab_size is None:
        vocab_size = read_config(directory).get("vocab_size")
    if not any(path.is_file() for pattern in _VOCABULARIES for path in directory.glob(pattern)):
        raise InputError(f"{directory} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json)")
    tokenizer = _open(directory)
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if not isinstance(vocab_size, int) or largest >= vocab_size:
        raise InputError(
            f"{directory}: the tokenizer has ids up to {largest}, the model's vocabulary ends at {vocab_size}; "
            "this tokenizer belongs to another model"
        )
    # Said already, so not to be said again: rows are cut here, and prompts that are too long refused, by us.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def _open(directory: Path) -> "PreTrainedTokenizerBase":
    settings, whole = directory / "tokenizer_config.json", (directory / "tokenizer.json").is_file()
    instead = stand_in(read_json(settings) if settings.is_file() else {})
    if instead == WHOLE and not whole:
        raise InputError(
            f"{directory}: its tokenizer is code in that directory, which never runs; put the tokenizer.json of the "
            "model it was made from beside it"
        )
    if not whole and _needs_sentencepiece(directory):
        raise InputError(f"{directory}: reading its tokenizer.model needs SentencePiece: pip install sentencepiece")
    import transformers  # slow to import

    reader = getattr(transformers, instead or "AutoTokenizer")
    try:
        return reader.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever the file's parser does
        reason = " ".join(str(error).split())
        raise InputError(f"{directory}: its tokenizer cannot be loaded: {reason}") from None


def _needs_sentencepiece(directory: Path) -> bool:
    """Is there a model of SentencePiece (a protocol buffer; tiktoken's is text) and nothing here to read it?"""
    models = sorted(path for path in directory.glob("*.model") if path.is_file())
    if not models or find_spec("sentencepiece") is not None:
        return False
    with models[0].open("rb") as file:
        return file.read(1) == b"\n"
