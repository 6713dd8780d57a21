"""What makes the AR model a good drafter of its own text, the text being exactly AR's in every arm.

Uno (arXiv 2609.04010; Qwen3-8B, rank 128, tokens a forward): total variation 2.39, KL 2.22, both 2.23; rank 256 2.47;
a curriculum of block lengths 2.71 against 2.65.

Efficient-DLM (arXiv 2512.14067) converts the model instead, and what it decodes is another text.

Here: the drafter of configs/quickstart_lossless.py after half of its steps, an arm for each thing that is changed of
it. Its adapters act on noisy columns alone, so what is decoded never changes: the accuracy is AR's, and what is
compared is tokens a forward. A cycle of self-speculation is two forwards: one drafts and settles a token that AR gives,
one verifies; draft n is right where the second settles n + 1 tokens or more. A cycle of quadratic speculation is one
forward.

    edlm study --config=configs/studies/lossless.py --workdir=runs/studies/lossless

Hardware: one core of an AMD EPYC beside other work, of an older one for two; 33 cells, which take 2 to 4 minutes each
where nobody else uses the machine.

Result: the text is AR's in every cell (256 held-out prompts). After 200 steps a cycle of two forwards gives 3.34 tokens
(3.41, 3.28 and 3.33 by seed), one of quadratic speculation 2.83 ± 0.01. Growing blocks help most, as in Uno (3.73 and
3.01 ± 0.01); masks and two-way noise, the two changes that Uno does not make, come next (3.56 and 2.90 ± 0.01): masks
add 0.12 ± 0.04 to the cycle of two, the look both ways 0.10 ± 0.03 beside them; in a quadratic cycle neither effect is
certain. Twice the updates give 3.91 and 3.54 ± 0.03. Total variation alone learns the first draft and little else
here (1.78 ± 0.02), KL or plain cross-entropy do without it (2.81 ± 0.05 and 2.75 ± 0.04, both losses of Uno's together
2.83 ± 0.01): its order of the losses is not shown at this scale. Rank 32 has 2.18 ± 0.04, q and v alone 1.63 ± 0.02:
small adapters do not carry it.

It pays in tokens a forward alone: this model is so small that its cache holds it, where eight columns cost 1.6 times
one and a cycle's other work shows. At batch 1 a drafter of 400 steps decodes 0.38 of AR's tokens/s by self-speculation
(0.57 with three drafts), 0.49 by quadratic speculation with one draft, and prompt lookup 0.75, all with AR's tokens on
64 of 64 prompts, other ones, on which a forward gives 1.20 to 1.83 tokens (docs/benchmarks/decode_drafter_epyc.json).
On SmolLM2-135M it is faster: docs/performance.md.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from edlm_jax.studies.cells import study_config

LOSSLESS = runpy.run_path(str(Path(__file__).parents[1] / "quickstart_lossless.py"))["get_config"]
STEPS = LOSSLESS().steps // 2


def get_config() -> ConfigDict:
    """The drafter, decoded in both modes that draft for themselves."""
    c = study_config(LOSSLESS())
    c.base.steps = STEPS
    c.base.evaluation.tasks = (dict(c.base.evaluation.tasks[0], size=256),)
    c.base.checkpoint.keep_last = 1
    c.eval_modes = ("self_speculation", "quadratic_speculation")
    return c


def sweep(add) -> None:
    """Losses, noise, order inside the block, curriculum, rank, matrices, updates."""
    add("total variation + KL, uniform tokens, causal", {})
    weights = ("total_variation", "kl", "cross_entropy")
    only = lambda **given: {f"objective.{name}_weight": given.get(name, 0.0) for name in weights}  # noqa: E731
    add("total variation", only(total_variation=1.0))
    add("KL", only(kl=1.0))
    add("cross-entropy", only(cross_entropy=1.0))
    add("masks", {"objective.noise": "full_masks"})
    add("bidirectional in the block", {"objective.pattern": "semi_block"})
    add("masks, bidirectional", {"objective.noise": "full_masks", "objective.pattern": "semi_block"})
    add("blocks of 2, 4, then 8", {"objective.curriculum": ((2, STEPS // 4), (4, STEPS // 4))})
    add("rank 32", {"lora.rank": 32, "lora.alpha": 64.0})
    add("q and v alone", {"lora.targets": ("q_proj", "v_proj")})
    add("twice the updates", {"steps": 2 * STEPS})
