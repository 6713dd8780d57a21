"""Accuracy and tokens per forward of any modes with their options, on held-out questions of the quickstart.

    python -m tests.benchmarks.modes runs/quickstart/model 512 diffusion:threshold=0.95 multi_block:blocks=2,opens=0.5
"""

import sys

from configs.quickstart import KINDS
from edlm_jax.decoding import Decoder, parse_mode
from edlm_jax.evaluation.compare import compare_accuracy
from edlm_jax.evaluation.tasks import load_tasks, need_decoded
from edlm_jax.evaluation.tasks.task import Task, Way
from edlm_jax.models import Transformer
from edlm_jax.pretrained import Text, load_pretrained, load_tokenizer

SEED = 77


def asked(path: str, size: str) -> tuple[Transformer, list[Task], Text]:
    """(a model, so many held-out questions, how it reads them)."""
    model, tokenizer = load_pretrained(path, dtype="float32"), load_tokenizer(path)
    source = dict(kind="tasks", kinds=KINDS, split="test", seed=SEED, size=int(size))
    return model, need_decoded(load_tasks((source,), tokenizer)), Text.of(model.spec, tokenizer)


def main(path: str, size: str, *modes: str) -> None:
    """Prints a line a mode."""
    model, tasks, text = asked(path, size)
    decoder = Decoder(model)
    for mode in modes:
        (score,) = compare_accuracy([Way(decoder, parse_mode(mode), model)], tasks, text, batch_size=64)
        print(f"{mode}  {score['accuracy']:.3f} @ {score['tokens_per_forward']:.2f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
