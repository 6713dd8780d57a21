"""What a study measures of a model beside its answers, by name: weight drift, losses, retrieval, the cost of a step."""

import dataclasses
from typing import Any

from edlm_jax.benchmarks.training import time_train_step
from edlm_jax.diagnosis.drift import weight_drift
from edlm_jax.diffusion.streams import AUTOREGRESSIVE
from edlm_jax.evaluation.embedding import attentions, documented_functions, retrieval
from edlm_jax.evaluation.heldout import heldout_loss
from edlm_jax.models.transformer import Transformer
from edlm_jax.studies.cells import Measures
from edlm_jax.training.run import Run


def measure_drift(before: Transformer, after: Transformer) -> dict[str, Any]:
    """The mean over layers for the tables, and every layer's under "drift"."""
    drift = weight_drift(before, after)
    means = {f"drift_{group}": sum(d["relative"]) / len(d["relative"]) for group, d in drift.items()}
    return means | {"drift": drift}


def measure_model(measures: Measures, run: Run, model: Transformer, tokenizer) -> dict[str, float]:
    """Held-out losses in nats per token, "LOSS_SOURCE": an AR model's own, of a converted model this one and its bound.

    The AR loss of a conversion says what it has forgotten of being one. And how well a docstring finds its function's
    body when texts are read by each attention: the mean reciprocal rank.
    """
    measured, layout = {}, run.objective.layout
    for source in measures.eval_losses:
        data = dataclasses.replace(run.data, eval_sources=(source,))
        layouts = {"ar_loss": AUTOREGRESSIVE} | ({"diffusion_loss": layout} if model.spec.conversion else {})
        for name, trained_as in layouts.items():
            measured[f"{name}_{source['kind']}"] = heldout_loss(model, data, tokenizer, trained_as)
    if measures.retrieval:
        pairs = documented_functions(measures.retrieval)
        for name, pattern in attentions(model.spec, layout.block_length).items():
            found = retrieval(model, tokenizer, pairs, pattern=pattern)
            measured[f"retrieval_{name}"] = found["mean_reciprocal_rank"]
    return measured


def measure_training(measures: Measures, run: Run) -> dict[str, float]:
    """What a training step takes: seconds, the bytes of its state, and the peak that the compiler plans for."""
    if not measures.timed_steps:
        return {}
    timed = time_train_step(run, measures.timed_steps)
    cost = {"step_seconds": timed["seconds_per_step"]["median"]}
    cost |= {f"{name}_bytes": count for name, count in timed["state_bytes"].items()}
    return cost | ({"peak_bytes": timed["peak_bytes"]["planned"]} if "planned" in timed["peak_bytes"] else {})
