"""Everything that `edlm diagnose` measures of a converted model, and its tables."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edlm_jax.data.pipeline import EvalBatches
from edlm_jax.decoding import Decoder
from edlm_jax.decoding.modes import Mars, trained_mode
from edlm_jax.diagnosis.drift import weight_drift
from edlm_jax.diagnosis.gradient_variance import gradient_variance, ways_of
from edlm_jax.diagnosis.order import decode_order
from edlm_jax.diagnosis.prediction import predict
from edlm_jax.diagnosis.states import write_states
from edlm_jax.diffusion.masks import EvenCounts
from edlm_jax.diffusion.streams import AUTOREGRESSIVE
from edlm_jax.diffusion.terms import MaskedTokens
from edlm_jax.evaluation.heldout import heldout_rows
from edlm_jax.evaluation.tasks.task import Question, decode_questions
from edlm_jax.models.transformer import Transformer
from edlm_jax.pretrained import Text
from edlm_jax.reports.progress import Progress
from edlm_jax.reports.report import Rows
from edlm_jax.training.objective import Objective

Diagnosis = dict[str, Any]


def diagnose(
    model: Transformer,
    baseline: Transformer | None,
    source: Mapping[str, Any],
    questions: Sequence[Question],
    text: Text,
    *,
    threshold: float,
    draws: int,
    batch_size: int,
    states: Path | None = None,
) -> Diagnosis:
    """{"predictions": {MODE, "ar"}, "decode_order", "gradient_variance", "weight_drift"}, each by its own file.

    MODE is what the model was trained to decode by, "diffusion" or "mars". What there is nothing to measure by is left
    out: an order without questions, a drift without a baseline, a variance where mars has no noise levels to draw.
    `states`: where residual streams go, see states.py; their number is "states".
    """
    data, conversion = heldout_rows(model.spec, source, batch_size=batch_size), model.spec.conversion
    mode = trained_mode(conversion.layout)(threshold=threshold)
    objective = Objective(conversion.layout, EvenCounts(conversion.mask_token_id), (MaskedTokens(),))
    ways = ways_of(objective) if draws and not isinstance(mode, Mars) else []
    parts = 1 + (baseline is not None) + bool(questions) + (states is not None) + len(ways)
    found: Diagnosis = {"block_length": data.block_length, "threshold": threshold}
    with Progress(parts, "diagnose") as progress:
        finished = itertools.count(1)
        done = lambda part: progress.done(next(finished), part)  # noqa: E731
        found["predictions"] = {mode.name: predict(model, data, text.tokenizer, conversion.layout)}
        done("predictions")
        if baseline is not None:
            found["predictions"]["ar"] = predict(baseline, data, text.tokenizer, AUTOREGRESSIVE)
            found["weight_drift"] = weight_drift(baseline, model)
            done("predictions of the baseline")
        if questions:
            decoder, C = Decoder(model), conversion.block_length
            decoded = decode_questions(decoder, mode, questions, text, batch_size)
            prompts = [question.prompt for question in questions]
            offsets = [len(prompt) % C if model.spec.on_position_grid else 0 for prompt in prompts]
            found["decode_order"] = decode_order([row.accepted_at for row in decoded], C, offsets)
            done("order of decoding")
            if states is not None:
                found["states"] = write_states(states, decoder, prompts, decoded, batch_size)
                done("residual streams")
        if ways:
            batch = next(iter(EvalBatches(data, text.tokenizer)))
            on_way = lambda way: done(f"gradients, {way}")  # noqa: E731
            found["gradient_variance"] = gradient_variance(model, objective, batch, draws, on_way)
    return found


def diagnosis_rows(found: Diagnosis) -> Iterator[Rows]:
    """The tables, short: curves are in the picture."""
    shown = {"AR" if mode == "ar" else mode: prediction for mode, prediction in found["predictions"].items()}
    losses = {name: prediction["loss_by_position"] for name, prediction in shown.items()}
    yield (
        ["predictions", *shown],
        [
            ["loss at the block's first position", *(f"{loss[0]:.3f}" for loss in losses.values())],
            ["loss at its last position", *(f"{loss[-1]:.3f}" for loss in losses.values())],
            ["expected calibration error", *(f"{prediction['ece']:.3f}" for prediction in shown.values())],
        ],
    )
    facts = []
    if order := found.get("decode_order"):
        facts += [[f"left token {when}", f"{order[name]:.3f}"] for name, when in _WHEN.items()]
        facts.append(["Kendall's tau of position and forward", f"{order['kendall_tau']:.3f}"])
    for group, drift in found.get("weight_drift", {}).items():
        mean = {name: sum(values) / len(values) for name, values in drift.items()}
        facts.append([f"weight drift, {group} (mean over layers)", f"{mean['relative']:.3f}"])
        facts.append([f"cosine with the weights before, {group}", f"{mean['cosine']:.3f}"])
    if facts:
        yield ["measure", "value"], facts
    if ways := found.get("gradient_variance"):
        ratio = lambda way: "-" if way["relative"] is None else f"{way['relative']:.2f}"  # noqa: E731
        header = ["noise levels", "variance / squared gradient", "columns of a row"]
        yield header, [[name, ratio(way), f"{way['columns']} L"] for name, way in ways.items()]


_WHEN = {"left_first": "decoded earlier", "together": "in the same forward", "right_first": "decoded later"}
