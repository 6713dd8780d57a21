"""What a drafter, a distillation and a conversion take at least, by size: the table of docs/converting.md.

    python -m tests.benchmarks.cost_table docs/compile

Hours = tokens x FLOPs of a row token / (the devices' peak x the MFU at best). FLOPs follow from shapes and objective
(training/metrics.py); the MFU is the bound of a step that `edlm compile` has compiled, of that size or the nearest. So
each number is a bound, never a measurement. What makes the answers that are learned from is not in it.
"""

import json
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from edlm_jax.parallel.devices import describe
from edlm_jax.training.config import default_config
from edlm_jax.training.initial import planned_spec
from edlm_jax.training.metrics import step_flops
from edlm_jax.training.run import Run

_CONFIGS = Path(__file__).parents[2] / "configs"
_LENGTH = 4096  # tokens of a row
# config with the shape (and what differs from it), the report whose MFU counts, GPUs on which the full conversion fits
_QWEN3_1_7B = dict(hidden_size=2048, intermediate_size=6144)
_SMOLLM2 = dict(vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3)
_SMOLLM2 |= dict(head_dim=64, intermediate_size=1536)
SIZES: dict[str, tuple[str, Mapping[str, int], str]] = {
    "135M": ("qwen3_0_6b", _SMOLLM2, "0p6b_rtx4090_1"),
    "0.6B": ("qwen3_0_6b", {}, "0p6b_rtx4090_1"),
    "1.7B": ("qwen3_0_6b", _QWEN3_1_7B, "0p6b_h100_1"),
    "4B": ("efficient_dlm_4b", {}, "4b_h100_8"),
    "8B": ("efficient_dlm_8b", {}, "8b_h100_8"),
}
_SHAPES = {"qwen3_0_6b": "QWEN3_0_6B", "efficient_dlm_4b": "QWEN3_4B", "efficient_dlm_8b": "QWEN3_8B"}
_DRAFTER = {"objective.pattern": "causal_block", "objective.alignment": "shifted", "objective.noise": "uniform_tokens"}
_DRAFTER |= {"objective.diffusion_weight": 0.0, "objective.total_variation_weight": 1.0, "objective.block_length": 16}
_DRAFTER |= {"lora.rank": 128, "lora.columns": "noisy"}
_DISTILLED = {"objective.pattern": "semi_block", "objective.block_length": 4, "objective.ar_weight": 1.0}
_DISTILLED |= {"objective.diffusion_weight": 0.0, "objective.kl_weight": 1.0}
_TWO_VIEWS = {"objective.pattern": "semi_block", "objective.block_length": 4, "objective.ar_weight": 1.0}
_TWO_VIEWS |= {"objective.alignment": "shifted", "objective.noise": "complementary"}
_TWO_VIEWS |= {"objective.diffusion_weight": 0.0, "objective.cross_entropy_weight": 1.0}
RECIPES: dict[str, tuple[float, Mapping[str, Any]]] = {  # tokens of the paper, what is trained
    "drafter, 4.9B (Uno)": (4.9e9, _DRAFTER),
    "distilled, 0.066B (OPDLM)": (0.066e9, _DISTILLED),
    "full, 10B (FLARE)": (10e9, _TWO_VIEWS),
    "full, 300B (Efficient-DLM)": (300e9, {}),
}


def token_flops(config: str, shape: Mapping[str, int], changes: Mapping[str, Any]) -> float:
    """Of one row token of training, forward and backward."""
    c = default_config()
    c.init.path = "shape"
    c.init.hf_config = ConfigDict(runpy.run_path(str(_CONFIGS / f"{config}.py"))[_SHAPES[config]] | dict(shape))
    c.objective.block_length = 16
    c.data.length = _LENGTH
    with c.ignore_type():
        c.update_from_flattened_dict(dict(changes))
    run = Run.of(c)
    spec = planned_spec(run.start)
    return step_flops(spec, run.objective.of_model(spec), 1, _LENGTH, run.start.lora) / _LENGTH


def hours(size: str, recipe: str, directory: Path) -> float:
    """At best, on all devices of the size's report."""
    (config, shape, name), (tokens, changes) = SIZES[size], RECIPES[recipe]
    report = json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
    rate = report["devices"] * describe(report["device_kind"]).peak_flops
    useful = rate * report["train_step"]["at_best"]["mfu_at_best"]
    return tokens * token_flops(config, shape, changes) / useful / 3600


def table(directory: Path) -> str:
    """In Markdown, a line a size."""
    rows = [["model", "devices", *RECIPES], ["---", "---", *["---:"] * len(RECIPES)]]
    for size, (_, shape, name) in SIZES.items():
        topology = json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))["topology"]
        times = [hours(size, recipe, directory) for recipe in RECIPES]
        times = [f"{float(f'{time:.2g}'):,g} h" for time in times]  # two digits
        rows.append([size + " (scaled)" * bool(shape), topology, *times])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(table(Path(sys.argv[1])), end="")
