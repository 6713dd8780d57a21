"""The best block length by the size of the model, at equal noisy columns a step.

The paper (arXiv 2512.14067) trains 1.5B in blocks of 16 and 4B and 8B in blocks of 64, and no size in all of them.
SDAR tolerates longer blocks the larger the model; LLaDA2.0 (arXiv 2512.15745) has 70.3 in blocks of 16 and 70.2 in
blocks of 32. No law is known.

Here: AR models of three widths, with 0.4M, 1.6M (the quickstart's) and 6.5M parameters in their layers, converted in
blocks of 4 to 32 with the quickstart's data and a quarter of its steps. A row has 128 noisy columns whatever its
blocks, half of them masked. Those of widths 96 and 384 are made first; the table's AR row is the quickstart's alone:

    W=96; DIR=runs/quickstart_ar_$W  # then 384; the first stage is stopped after 3000 steps, as the quickstart's was
    edlm train --config=configs/quickstart_ar.py:first/$W --workdir=$DIR/first
    edlm export --workdir=$DIR/first --step=3000 --out=$DIR/first_model --dtype=float32
    edlm train --config=configs/quickstart_ar.py:second/$W --workdir=$DIR/second
    edlm export --workdir=$DIR/second --out=$DIR/second_model --dtype=float32
    edlm study --config=configs/studies/block_scaling.py --workdir=runs/studies/block_scaling

Hardware: 36 cells, one core of an AMD EPYC beside other work, 1 to 2 minutes each at 0.4M, 3 at 1.6M, 8 to 12 at 6.5M
(of four of these the page counts the measuring alone). The two other AR models took 8 minutes (0.4M) and 55 (6.5M) of
such a core; they have 0.987 and 0.989 of held-out prompts right (`edlm evaluate --count=512`, less the 57 of `lookup`,
which no model has learned), the quickstart's all of the study's.

Result, on 512 held-out prompts, after 400 steps at one learning rate for all sizes. The shortest blocks are best at
every size: at 0.95, blocks of 4, 8, 16 and 32 have 0.831, 0.545, 0.163, 0.063 right at 0.4M (± 0.021 at most), 0.896,
0.799, 0.544, 0.357 at 1.6M (± 0.022) and 0.902, 0.746, 0.519, 0.304 at 6.5M (± 0.025). So they are at equal tokens a
forward, from 1.7 to 2.5 of them: at 1.6M 0.876 ± 0.006 @ 2.17 in blocks of 4 and 0.769 ± 0.007 @ 2.24 in blocks of 8.
A larger model bears longer blocks better, once: of what blocks of 4 have right, blocks of 8, 16 and 32 have 66, 20 and
8 % at 0.4M, 89, 61 and 40 % at 1.6M, 83, 58 and 34 % at 6.5M, where a forward settles a little more. What more steps
would change here is not known: with all its 1600 the quickstart has 0.986 in blocks of 8.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from edlm_jax.studies.cells import study_config

QUICKSTART = runpy.run_path(str(Path(__file__).parents[1] / "quickstart.py"))["get_config"]
OTHERS = {"0.4M": "runs/quickstart_ar_96/second_model", "6.5M": "runs/quickstart_ar_384/second_model"}
LENGTHS = (4, 8, 16, 32)


def get_config() -> ConfigDict:
    """The quickstart, shorter."""
    c = study_config(QUICKSTART())
    c.base.steps //= 4
    c.base.checkpoint.keep_last = 1
    c.base.evaluation.thresholds = (1.0, 0.95, 0.9, 0.8)
    return c


def sweep(add) -> None:
    """Every size with every block length."""
    for size in ("1.6M", *OTHERS):
        path = {"init.path": OTHERS[size]} if size in OTHERS else {}
        for length in LENGTHS:
            add(f"{size}, blocks of {length}", path | {"objective.block_length": length})
