"""What a study is: arms (settings to compare) times seeds, each a cell that is trained and measured by itself."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from edlm_jax.data.sources import open_source
from edlm_jax.decoding.modes import MODES
from edlm_jax.errors import InputError, check_range
from edlm_jax.evaluation.compare import check_evaluation
from edlm_jax.training.run import Run

QUICK_STEPS = 2


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training run and its measurements."""

    arm: str
    changes: Mapping[str, Any]  # dotted fields of the training config
    seed: int
    run: Run

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"{re.sub(r'[^a-z0-9.]+', '-', self.arm.lower()).strip('-')}-seed{self.seed}"


@dataclasses.dataclass(frozen=True)
class Measures:
    """What every cell is measured by; `study_config` says what the fields mean."""

    eval_steps: tuple[int, ...]
    eval_block_lengths: tuple[int, ...]
    eval_modes: tuple[str, ...]
    eval_losses: tuple[Mapping[str, Any], ...]
    retrieval: int
    timed_steps: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """All of a study."""

    quick: bool
    x: str
    base: Run
    measures: Measures
    cells: list[Cell]  # one arm's seeds after the other's


def study_config(base: ConfigDict) -> ConfigDict:
    """The defaults that every configs/studies/*.py starts from; `base` is the training config that its arms change."""
    c = ConfigDict()
    c.quick = False  # one seed, few steps, few tasks: to see that a study runs
    c.seeds = (0, 1, 2)  # of each arm: standard errors are over these
    c.eval_steps = ()  # measure the checkpoints of these steps; () = the last one
    c.eval_block_lengths = ()  # decode in blocks of these lengths; () = as trained
    c.eval_modes = ("diffusion",)  # ways to decode: a mode that verifies its tokens, or "ar", has no threshold
    c.eval_losses = ()  # sources, as in data.sources, whose held-out loss is measured, AR and diffusion
    c.retrieval = 0  # held-out functions of the standard library among which a docstring finds its own; 0 = none
    c.timed_steps = 0  # training steps of each arm that are timed, and their memory counted; 0 = none
    c.x = "tokens_per_forward"  # of the curves; or step, block_length, or a field that the arms change
    c.base = base
    return c


def expand(c: ConfigDict, sweep: Callable[[Callable], None]) -> Plan:
    """The cells of a study and what they are measured by; refuses what could only fail hours later."""
    _check(c, Run.of(c.base))
    c = _make_quick(c) if c.quick else c
    base = Run.of(c.base)
    arms: dict[str, Mapping[str, Any]] = {}

    def add(arm: str, changes: Mapping[str, Any]) -> None:
        if arm in arms:
            raise InputError(f"the study adds {arm!r} twice")
        arms[arm] = dict(changes)

    sweep(add)
    if c.x not in ("tokens_per_forward", "step", "block_length"):
        for arm, changes in arms.items():
            if not isinstance(changes.get(c.x), int | float) or not math.isfinite(changes[c.x]):
                raise InputError(f"config.x={c.x} is the axis of the curves: arm {arm!r} must change it to a number")
    cells = [_make_cell(c, arm, changes, seed) for arm, changes in arms.items() for seed in c.seeds]
    if len({cell.name for cell in cells}) < len(cells):
        raise InputError(f"two arms of the study have names that make one directory: {', '.join(arms)}")
    measures = Measures(**{field.name: c[field.name] for field in dataclasses.fields(Measures)})
    return Plan(c.quick, c.x, base, measures, cells)


def _make_quick(c: ConfigDict) -> ConfigDict:
    """The same study with one seed, two steps, four tasks, and the ends of what is measured."""
    c = c.copy_and_resolve_references()
    base = c.base
    c.seeds = tuple(c.seeds[:1])
    c.eval_steps = (1, QUICK_STEPS) if c.eval_steps else ()
    c.eval_block_lengths = _ends(c.eval_block_lengths)
    c.retrieval, c.timed_steps = min(c.retrieval, 4), min(c.timed_steps, 1)
    base.update(steps=QUICK_STEPS, log_every=1)
    base.optimizer.update(warmup_steps=0, schedule="constant", decay_steps=0)
    base.data.eval_batches = 1
    tasks = (dict(source, size=4) if source.get("kind") == "tasks" else source for source in base.evaluation.tasks)
    base.evaluation.tasks = tuple(tasks)
    base.evaluation.update(thresholds=_ends(base.evaluation.thresholds), batch_size=4)
    return c


def _ends(values: Sequence) -> tuple:
    """The first and the last, once where they are the same."""
    return tuple(dict.fromkeys((values[0], values[-1]))) if values else ()


def _make_cell(c: ConfigDict, arm: str, changes: Mapping[str, Any], seed: int) -> Cell:
    config = c.base.copy_and_resolve_references()
    if ignored := [field for field in changes if field.startswith("evaluation.") and field != "evaluation.thresholds"]:
        raise InputError(f"arm {arm!r} of the study changes {ignored[0]}; all arms are asked what the base says")
    try:
        with config.ignore_type():  # `Run.of` knows what fits; here half_life may become None
            config.update_from_flattened_dict(changes)
    except (KeyError, AttributeError) as error:
        raise InputError(f"arm {arm!r} of the study changes a field that there is not: {error}") from None
    config.seed = seed
    if c.quick:  # an arm may change these, too
        config.steps = QUICK_STEPS
    if c.eval_steps:
        every = math.gcd(*c.eval_steps)
        config.checkpoint.update(every=every, keep_every=every)
    run = Run.of(config)
    if not run.objective.layout.noisy:
        raise InputError(f"arm {arm!r} of the study trains an AR model: a study compares conversions")
    if max(c.eval_steps, default=0) > run.steps:
        raise InputError(f"config.eval_steps: arm {arm!r} stops at step {run.steps}, before {max(c.eval_steps)}")
    if seed == c.seeds[0] and any(field.startswith(("evaluation.", "data.")) for field in changes):
        check_evaluation(run)
    return Cell(arm, changes, seed, run)


def _check(c: ConfigDict, base: Run) -> None:
    if not c.seeds or any(not isinstance(seed, int) for seed in c.seeds):
        raise InputError(f"config.seeds must be whole numbers, at least one, not {tuple(c.seeds)}")
    for name in ("seeds", "eval_steps", "eval_block_lengths", "eval_modes"):
        if len(set(c[name])) < len(c[name]):  # or one run would count as two of which there is a standard error
            raise InputError(f"config.{name} must differ, not {tuple(c[name])}")
    for name in ("eval_steps", "eval_block_lengths"):
        if any(not isinstance(value, int) or value < 1 for value in c[name]):
            raise InputError(f"config.{name} must be positive numbers, not {tuple(c[name])}")
    if not c.eval_modes or set(c.eval_modes) - set(MODES):
        raise InputError(f"config.eval_modes are one or more of {', '.join(MODES)}, not {tuple(c.eval_modes)}")
    for x, measured in (("step", "eval_steps"), ("block_length", "eval_block_lengths")):
        if c.x == x and not c[measured]:
            raise InputError(f"config.x={x} needs config.{measured}")
    for name in ("retrieval", "timed_steps"):
        check_range(f"config.{name}", c[name], 0)
    for source in c.eval_losses:
        open_source(source)
    kinds = [source["kind"] for source in c.eval_losses]
    if len(set(kinds)) < len(kinds):
        raise InputError("config.eval_losses: the sources are named by their kinds, which must differ")
    if not base.start.path:
        raise InputError("config.base.init.path is empty: a study converts an AR checkpoint")
    check_evaluation(base)


def cell_range(text: str, cells: Sequence[Cell]) -> range:
    """The indices that `--cells=3`, `--cells=0:7` (the end is left out) or nothing asks for."""
    first, colon, last = (text or ":").partition(":")
    try:
        start, count = int(first or 0), len(cells)
        stop = int(last or count) if colon else start + 1
    except ValueError:
        raise InputError(f"--cells takes a number or a range such as 0:7, not {text!r}") from None
    if not 0 <= start < stop <= count:
        raise InputError(f"--cells={text} lies outside the study's cells 0 to {count - 1}")
    return range(start, stop)
