"""Files that are written whole or not at all, and JSON that is read."""

import json
from pathlib import Path
from typing import Any

from edlm_jax.errors import InputError


def write_whole(path: Path, text: str) -> None:
    """The file holds the text before or this one, whenever a process is killed."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; InputError where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} is not a JSON object")
    return found
