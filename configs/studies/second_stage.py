"""A second stage on a converted model, by what it learns: to take its own guesses back, to be sure, or little new.

DMax (arXiv 2604.08302; LLaDA-2.0-mini, GSM8K, accuracy at tokens a forward): 92.6 at 2.04 before, 92.1 at 5.48 with
its training and its decoding, 78.0 at 4.47 with its decoding alone. Editing with LLaDA2.1's two thresholds (technical
report in inclusionAI/LLaDA2.X) asks for a model that was trained on wrong tokens, too. CAP's certainty (arXiv
2512.15745): 78.6 at 3.18 to 76.9 at 4.65. BARD (arXiv 2604.16514) lets blocks grow with a teacher in small blocks, who
sees the same noise. MultiTF (arXiv 2606.29215; SDAR-8B, mean of four tasks) trains on blocks that are noisy together,
as several are in flight: 69.0 at 2.54, with several in flight 66.9 at 3.01 before and 69.7 at 4.46 after it.

Efficient-DLM (arXiv 2512.14067) has one stage, and asks which masks are best; "masks as met" are drawn from those that
the converted model's own decoding, in blocks of 8, went through.

Here: configs/quickstart_dmax.py, which starts from the quickstart's model and learns its own answers in blocks of 16.
"Converted before" is that model at threshold 0.9, as it was.

    edlm study --config=configs/studies/second_stage.py --workdir=runs/studies/second_stage

Hardware: one core of an AMD EPYC beside other work, 4 to 14 minutes each of the 33 cells.

`multi_block` took sure tokens of blocks ahead wherever they stood (`anywhere=yes` now).

Result, on 512 held-out prompts. Own guesses are what dmax and editing need: dmax has 0.965 ± 0.005 @ 5.86 at 0.8 after
them and 0.581 ± 0.006 @ 1.69 after masks, editing 0.956 ± 0.001 @ 3.55 and 0.305 ± 0.008 @ 3.23. Levels of 0.5 to 1
and 0.75 alone are alike. Certainty settles more at a threshold and is right less often, 0.945 ± 0.001 @ 6.58 at 0.95
for 0.958 ± 0.005 @ 5.52 in blocks of 16; on straight lines between thresholds, which masks' own curve bends above, it
has 6 to 9 % more tokens (± 3) at equal accuracy: so much at most. Masks as met settle more in blocks of 8 and err
less: 0.977 ± 0.004 @ 6.16 at 0.8 for 0.971 ± 0.005 @ 5.77, and 0.960 ± 0.003 @ 6.46 at 0.5 for 0.925 ± 0.003 @ 6.34;
dmax bears them better, too. A teacher in blocks of 8 helps blocks of 16 a little (0.970 ± 0.004 @ 5.44 for 0.958 ±
0.005 @ 5.52 at 0.95, 0.936 ± 0.003 @ 7.06 for 0.925 ± 0.004 @ 6.98 at 0.8), not blocks of 32 (0.926 ± 0.008, and 0.921
± 0.002 without; growing from 16 to 32 0.913 ± 0.002). Groups of two blocks give multi_block 0.978 ± 0.002 @ 5.62 for
0.969 ± 0.002 @ 5.50 at 0.95, and 0.975 ± 0.003 @ 6.14 for 0.956 ± 0.005 @ 6.04 at 0.8; diffusion gains from them where
little is asked (0.951 ± 0.004 @ 6.40 for 0.925 ± 0.003 @ 6.34 at 0.5).
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from edlm_jax.studies.cells import study_config

DMAX = runpy.run_path(str(Path(__file__).parents[1] / "quickstart_dmax.py"))
MASKS = {"objective.noise": "masks", "objective.recovery_weight": 0.0, "objective.diffusion_weight": 1.0}


def get_config() -> ConfigDict:
    """The stage, decoded by what it was trained for and by what it was not."""
    c = study_config(DMAX["get_config"]())
    c.base.checkpoint.keep_last = 1
    c.base.evaluation.thresholds = (0.95, 0.8, 0.5)
    c.eval_modes = ("diffusion", "multi_block", "edit", "dmax")
    return c


def sweep(add) -> None:
    """DMax's noise at many levels and at one; the first stage's, longer, sure, as met, with a teacher, in groups."""
    add("own guesses, levels of 0.5 to 1", {})
    add("own guesses, 0.75", {"objective.noise": "own_guesses"})
    add("masks", MASKS)
    add("masks, certainty", MASKS | {"objective.certainty_weight": 1.0})
    add("masks, blocks of 8", MASKS | {"objective.block_length": 8})
    met = {"objective.noise": "visited", "objective.states": DMAX["OWN"]}
    add("masks as met, blocks of 8", MASKS | met | {"objective.block_length": 8})
    taught = {"objective.teacher": DMAX["MODEL"], "objective.teacher_weight": 0.5}  # in blocks of 8, what it starts as
    for length in (16, 32):
        larger = MASKS | {"objective.block_length": length}
        add(f"masks, taught in blocks of 8, blocks of {length}", larger | taught)
    add("masks, blocks of 32", MASKS | {"objective.block_length": 32})
    growing = {"objective.block_length": 32, "objective.curriculum": ((16, DMAX["get_config"]().steps // 2),)}
    add("masks, taught in blocks of 8, blocks of 16, then 32", MASKS | growing | taught)
    in_groups = {"objective.block_length": 8, "objective.noise": "chain", "objective.group": 2}
    add("masks, blocks of 8 in groups of 2", MASKS | in_groups)
