"""The tokenizer that lies beside the weights, or alone: read, and copied into exports and work directories.

Code that lies there, too, never runs, nobody is asked, and no copy has it.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edlm_jax.errors import InputError, refusing
from edlm_jax.files import read_json
from edlm_jax.pretrained.encode import HFTokenizer
from edlm_jax.pretrained.source import TOKENIZER_FILES, find_directory, read_config
from edlm_jax.pretrained.text import listed_ends

_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken", "tekken.json")
# Tokenizers whose class is code of their own, and the class of transformers that reads the same files alike.
_CLASSES = {"DreamTokenizer": "Qwen2Tokenizer"}
_WHOLE = "PreTrainedTokenizerFast"  # for any other such class: all that it is must stand in tokenizer.json


def load_tokenizer(path_or_repo: str | Path, vocab_size: int | None = None) -> HFTokenizer:
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


def reads_alike(one: HFTokenizer, other: HFTokenizer) -> bool:
    """Do two tokenizers make the same tokens of every text and conversation?"""

    def parts(tokenizer):
        backend = getattr(tokenizer, "backend_tokenizer", None)  # of all but those that are written in Python
        rules = backend.to_str() if backend else tokenizer.get_vocab()
        return rules, tokenizer.special_tokens_map, tokenizer.chat_template

    return parts(one) == parts(other)


def _open(directory: Path) -> HFTokenizer:
    settings, whole = directory / "tokenizer_config.json", (directory / "tokenizer.json").is_file()
    instead = _stand_in(read_json(settings) if settings.is_file() else {})
    if instead == _WHOLE and not whole:
        raise InputError(
            f"{directory}: its tokenizer is code in that directory, which never runs; put the tokenizer.json of the "
            "model it was made from beside it"
        )
    if not whole and _needs_sentencepiece(directory):
        raise InputError(f"{directory}: reading its tokenizer.model needs SentencePiece: pip install sentencepiece")
    import transformers  # slow to import

    reader = getattr(transformers, instead or "AutoTokenizer")
    with refusing(f"{directory}: its tokenizer cannot be loaded", Exception):  # whatever the files' parsers raise
        return reader.from_pretrained(directory, local_files_only=True, trust_remote_code=False)


def _needs_sentencepiece(directory: Path) -> bool:
    """Is there a model of SentencePiece (a protocol buffer; tiktoken's is text) and nothing here to read it?"""
    models = sorted(path for path in directory.glob("*.model") if path.is_file())
    return bool(models) and find_spec("sentencepiece") is None and models[0].read_bytes()[:1] == b"\n"


def copy_tokenizer(source: str | Path, target: Path, config: Mapping[str, Any]) -> None:
    """All that the tokenizer of a directory is made of; `config` is the config.json of the model that it belongs to.

    A generation_config.json gets the ends that it lacks: where there is one, nobody looks for them in config.json.
    """
    for path in {path for pattern in TOKENIZER_FILES for path in Path(source).glob(pattern) if path.is_file()}:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)
    _change(target / "tokenizer_config.json", _without_code)
    _change(target / "generation_config.json", lambda generation: generation | _ends(generation, config))


def _stand_in(settings: Mapping[str, Any]) -> str | None:
    """The class of transformers in place of the code that tokenizer_config.json asks for; None: it asks for none."""
    name = str(settings.get("tokenizer_class"))
    if name in _CLASSES:
        return _CLASSES[name]
    if not settings.get("auto_map"):
        return None
    import transformers  # slow to import

    return None if hasattr(transformers, name.removesuffix("Fast")) else _WHOLE


def _without_code(settings: dict[str, Any]) -> dict[str, Any]:
    instead = _stand_in(settings)
    kept = {name: value for name, value in settings.items() if name != "auto_map"}
    return kept | ({"tokenizer_class": instead} if instead else {})


def _ends(generation: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    known = listed_ends(generation, "generation_config.json")
    missing = [token for token in listed_ends(config) if token not in known]
    ends = known + missing
    return {"eos_token_id": ends if len(ends) > 1 else ends[0]} if missing else {}


def _change(path: Path, change: Callable[[dict], dict]) -> None:
    """Rewrites a file that is there, if this changes what it says; one that is no JSON stays as it is."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return
    if isinstance(before, dict) and (after := change(before)) != before:
        path.write_text(json.dumps(after, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
