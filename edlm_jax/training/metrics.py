"""What a run reports: scalars over a window of steps, FLOPs by formula, weight drift, and the files they go to."""

import contextlib
import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from edlm_jax.files import write_whole
from edlm_jax.models.layer import layer_shapes
from edlm_jax.models.lora import Lora, adapter_shapes, merged
from edlm_jax.models.spec import ModelSpec
from edlm_jax.parallel.devices import describe
from edlm_jax.training.objective import Objective

DRIFT_GROUPS = {"attention": ("q_DNH", "k_DKH", "v_DKH", "o_NHD"), "ffn": ("gate_DF", "up_DF", "down_FD")}


def step_flops(spec: ModelSpec, objective: Objective, rows: int, length: int, lora: Lora | None = None) -> float:
    """FLOPs that a training step on `rows` x `length` tokens needs: forward and backward, no rematerialisation.

    2 per weight and token forward, 4 backward; 4 * heads * head size per attended pair forward, 8 backward. Two streams
    pass the layers, the head runs on streams with a loss, and attention counts the pairs that the pattern allows
    (L^2 + L*C for clean context), not what a kernel visits. Look-ups, norms and softmax are left out, as is usual.
    Under adapters a layer's own matrices have no gradient (2 backward), the adapters are weights like others. Those of
    noisy columns alone leave clean columns without adapters and without a backward pass, and the head without gradient.
    """
    layout = objective.layout
    projections = spec.width * spec.head_dim * 2 * (spec.num_heads + spec.num_kv_heads)
    layers = spec.num_layers * (projections + 3 * spec.width * spec.ffn_width)
    through_layers = layout.columns(length)
    through_head = sum(term.columns(layout, length) for term in objective.terms)
    weights = layers * through_layers + spec.width * spec.vocab_size * through_head
    flops = 6.0 * rows * weights + 3 * _attention_flops(spec, objective, rows, length)
    if lora:
        adapters = spec.num_layers * sum(map(math.prod, adapter_shapes(layer_shapes(spec), lora).values()))
        adapted = layout.noisy_columns(length) if lora.gated else through_layers
        flops += rows * (6 * adapters * adapted - 2 * layers * through_layers)
        if lora.gated:
            clean, alone = through_layers - adapted, dataclasses.replace(layout, noisy=None).pairs(length)
            flops -= 2.0 * rows * (layers * clean + spec.width * spec.vocab_size * through_head)
            flops -= 8.0 * rows * spec.num_layers * spec.num_heads * spec.head_dim * alone
    return flops


def again_flops(spec: ModelSpec, objective: Objective, rows: int, length: int, remat: str) -> float:
    """FLOPs of the forward pass that a step's backward pass does again under a remat policy, at least."""
    if remat not in ("full", "save_attention"):
        return 0.0
    forward = step_flops(spec, objective, rows, length) / 3
    return forward - (remat == "save_attention") * _attention_flops(spec, objective, rows, length)


def _attention_flops(spec: ModelSpec, objective: Objective, rows: int, length: int) -> float:
    """Of the forward pass, over all pairs that the pattern allows."""
    pairs = sum(objective.layout.pairs(length, spec.kind(layer).window) for layer in range(spec.num_layers))
    return 4.0 * rows * spec.num_heads * spec.head_dim * pairs


def drift_metrics(before: Callable[[str], jax.Array], after: dict, lora: Lora | None = None) -> dict[str, float]:
    """|after - before| / |before| (Frobenius) over all matrices of attention, and of the FFN, as `drift_products`."""
    products = drift_products(before, after, lora)
    return {f"drift_{group}": float(np.sqrt(p["moved"].sum() / p["before"].sum())) for group, p in products.items()}


def drift_products(
    before: Callable[[str], jax.Array], after: dict, lora: Lora | None = None
) -> dict[str, dict[str, np.ndarray]]:
    """{group: inner products of each layer: of all its matrices before, after, of what moved, of before with after}.

    `before` gives a matrix of all layers by its name, `after` are all parameters of layers, with the adapters `lora`.
    Each is waited for, so that what was read of it is gone before the next is read.
    """
    each = lambda name: np.asarray(_products(before(name), after, name, lora))  # noqa: E731
    return {
        group: dict(zip(("before", "after", "moved", "both"), sum(map(each, names)), strict=True))
        for group, names in DRIFT_GROUPS.items()
    }


@functools.partial(jax.jit, static_argnames=("name", "lora"))
def _products(before, after: dict, name: str, lora: Lora | None) -> jax.Array:
    old, new = (x.astype(jnp.float32) for x in (before, merged(after, name, lora)))
    pairs = (old, old), (new, new), (new - old, new - old), (old, new)
    return jnp.stack([jnp.sum(x * y, axis=range(1, x.ndim)) for x, y in pairs])


class Clock:
    """Seconds of training: what runs under `pause` (compiling, evaluating, saving) does not count."""

    def __init__(self):
        self._began = time.perf_counter()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves out what happens inside."""
        before = self.seconds()
        yield
        self._began += self.seconds() - before

    def seconds(self) -> float:
        """Since the clock was made, without the pauses."""
        return time.perf_counter() - self._began


class Window:
    """Gathers steps' metrics until they are written: plain ones are averaged, noise bins are pooled."""

    def __init__(self, clock: Clock, flops_per_second: Callable[[float], dict]):
        self._clock, self._mfu = clock, flops_per_second
        self._steps, self._since = [], clock.seconds()

    def add(self, metrics: dict[str, np.ndarray]) -> None:
        """Takes the metrics of one finished step."""
        self._steps.append(metrics)

    def close(self) -> dict[str, float]:
        """The window's scalars; begins the next window."""
        seconds = max(self._clock.seconds() - self._since, 1e-9)
        columns = {name: np.stack([step[name] for step in self._steps]) for name in self._steps[0]}
        scalars = {name: float(v.mean()) for name, v in columns.items() if v.ndim == 1 and name != "tokens"}
        if "bin_ce" in columns:
            scalars |= noise_level_losses(columns["bin_ce"].sum(0), columns["bin_count"].sum(0))
        scalars["learning_rate"] = float(columns["learning_rate"][-1])
        scalars["tokens_per_second"] = float(columns["tokens"].sum()) / seconds
        scalars |= self._mfu(len(self._steps) / seconds)
        self._steps, self._since = [], self._clock.seconds()
        return scalars


def noise_level_losses(bin_ce: np.ndarray, bin_count: np.ndarray) -> dict[str, float]:
    """Mean ce of masked tokens per noise-level bin, named by the bin's upper end; bins without a token are left out."""
    ends = np.arange(1, len(bin_ce) + 1) / len(bin_ce)
    columns = zip(ends, bin_ce, bin_count, strict=True)
    return {f"loss_at_noise_{end:g}": float(ce / count) for end, ce, count in columns if count > 0}


def mfu_meter(flops_per_step: float, dtype: str) -> Callable[[float], dict[str, float]]:
    """Steps per second -> {"mfu": share of these devices' bfloat16 peak}, or {} where that peak is no measure."""
    peak = describe(jax.devices()[0].device_kind).peak_flops if dtype == "bfloat16" else None
    peak = peak and peak * jax.device_count()
    return lambda steps_per_second: {"mfu": flops_per_step * steps_per_second / peak} if peak else {}


class MetricsFiles:
    """metrics.jsonl and TensorBoard, by process 0 alone. A continued run drops what came after its checkpoint."""

    def __init__(self, workdir: Path, step: int):
        self._path, self._board = workdir / "metrics.jsonl", None
        self.before: dict[str, float] = {}  # what the run that goes on had written last
        self.evaluated = False  # at its last step
        if jax.process_index() == 0:
            from tensorboardX import SummaryWriter  # slow to import

            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
            kept = _lines_until(self._path, step)
            write_whole(self._path, "".join(f"{line}\n" for line in kept))
            for scalars in map(json.loads, kept):
                at = scalars.pop("step")
                self.before |= scalars
                self.evaluated |= at == step and any(name.startswith(("eval_", "drift_")) for name in scalars)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """One line, one point per curve. A value that is no number is written as null: JSON has no NaN."""
        if self._board is None:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(step=step) | finite) + "\n")
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes the curves."""
        if self._board is not None:
            self._board.close()


def _lines_until(path: Path, step: int) -> list[str]:
    """Whole lines of steps up to `step`; a line cut off by a killed process is dropped."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            if json.loads(line)["step"] <= step:
                kept.append(line)
    return kept
