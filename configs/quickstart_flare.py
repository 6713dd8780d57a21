"""FLARE's objective (arXiv 2606.01774) on the quickstart's model: AR, and two complementary views of every block of 4.

    edlm convert --config=configs/quickstart_flare.py --workdir=runs/flare

Each token is hidden in one view and seen in the other, its loss has no 1/t, targets are shifted, and the AR stream is
trained at the same weight: the model stays the AR model that it was, and `--mode=self_speculation` gives its text.

An arm of the study configs/studies/conversion_cost.py: far ahead of the paper's recipe at first, and behind it at the
end (docs/studies/conversion_cost.md; at that study's constant rate).
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

QUICKSTART = runpy.run_path(str(Path(__file__).parent / "quickstart.py"))["get_config"]
CHANGES = {
    "objective.pattern": "semi_block",
    "objective.alignment": "shifted",
    "objective.block_length": 4,
    "objective.noise": "complementary",
    "objective.half_life": float("inf"),
    "objective.noisy_length": 256,
    "objective.ar_weight": 1.0,
    "objective.diffusion_weight": 0.0,
    "objective.cross_entropy_weight": 1.0,
}


def get_config() -> ConfigDict:
    """The quickstart with the changes."""
    c = QUICKSTART()
    c.update_from_flattened_dict(CHANGES)
    return c
