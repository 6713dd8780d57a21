"""MARS (arXiv 2604.07023) on the quickstart's model: AR, and blocks of masks alone that are causal inside.

    edlm convert --config=configs/quickstart_mars.py --workdir=runs/mars
    edlm generate --model=runs/mars/model --mode=mars:threshold=0.9 --prompt='add 3+4 9+8 0+5 ->'

Every token is hidden, its loss has no 1/t, targets are shifted, and the AR stream is trained at the same weight: the
model stays the AR model that it was. `mars` goes from left to right as long as tokens are sure enough.

An arm of the study configs/studies/recipes.py.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

QUICKSTART = runpy.run_path(str(Path(__file__).parent / "quickstart.py"))["get_config"]
CHANGES = {
    "objective.pattern": "causal_block",
    "objective.alignment": "shifted",
    "objective.noise": "full_masks",
    "objective.diffusion_weight": 0.0,
    "objective.cross_entropy_weight": 1.0,
    "objective.ar_weight": 1.0,
}


def get_config() -> ConfigDict:
    """The quickstart with the changes."""
    c = QUICKSTART()
    c.update_from_flattened_dict(CHANGES)
    return c
