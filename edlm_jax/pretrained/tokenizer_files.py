"""The files that a tokenizer is made of, without code beside them: copied into exports and work directories."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edlm_jax.pretrained.source import tokenizer_files
from edlm_jax.pretrained.text import listed_ends

# Tokenizers whose class is code of their own, and the class of transformers that reads the same files alike.
_CLASSES = {"DreamTokenizer": "Qwen2Tokenizer"}
WHOLE = "PreTrainedTokenizerFast"  # for any other such class: all that it is must stand in tokenizer.json


def copy_tokenizer(source: str | Path, target: Path, config: Mapping[str, Any]) -> None:
    """All that the tokenizer of a directory is made of; `config` is the config.json of the model that it belongs to.

    A generation_config.json gets the ends that it lacks: where there is one, nobody looks for them in config.json.
    """
    for name in tokenizer_files(Path(source)):
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(Path(source) / name, target / name)
    _change(target / "tokenizer_config.json", _without_code)
    _change(target / "generation_config.json", lambda generation: generation | _ends(generation, config))


def stand_in(settings: Mapping[str, Any]) -> str | None:
    """The class of transformers in place of the code that tokenizer_config.json asks for; None: it asks for none."""
    name = str(settings.get("tokenizer_class"))
    if name in _CLASSES:
        return _CLASSES[name]
    if not settings.get("auto_map"):
        return None
    import transformers  # slow to import

    return None if hasattr(transformers, name.removesuffix("Fast")) else WHOLE


def _without_code(settings: dict[str, Any]) -> dict[str, Any]:
    instead = stand_in(settings)
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
