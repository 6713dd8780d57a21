"""The work directory: config.json, model.json, the tokenizer, and orbax checkpoints of parameters, optimizer and data.

Orbax writes a checkpoint under a temporary name and renames it when every process has finished, so that one killed
at any moment leaves the last complete one usable. Restoring goes onto the current mesh and processes, whatever mesh
and however many processes wrote it.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from absl import logging
from flax import nnx

from edlm_jax.attention import Tiles
from edlm_jax.data.shards import BatchIterator
from edlm_jax.errors import InputError
from edlm_jax.files import read_json, write_whole
from edlm_jax.models.lora import Lora, merge
from edlm_jax.models.spec import ModelSpec
from edlm_jax.models.transformer import Transformer
from edlm_jax.parallel.processes import check_shared
from edlm_jax.parallel.sharding import param_shardings
from edlm_jax.pretrained.tokenizer import copy_tokenizer, load_tokenizer, reads_alike
from edlm_jax.training.config import RESUMABLE, differing_keys
from edlm_jax.training.handlers import DataHandler, DataItem, array_handler, restore_args
from edlm_jax.training.step import TrainState

_POLICY = ocp.checkpoint_managers


@dataclasses.dataclass(frozen=True)
class Saves:
    """config.checkpoint, which says what its fields mean."""

    every: int = 0
    keep_last: int = 1
    keep_every: int = 0


class Checkpoints:
    """The checkpoints of one work directory; saving is asynchronous, `close` waits for it."""

    def __init__(self, workdir: Path, saves: Saves, *, read_only: bool = False):
        policies = [_POLICY.LatestN(saves.keep_last)]
        policies += [_POLICY.EveryNSteps(saves.keep_every)] if saves.keep_every else []
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_POLICY.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
        )
        handlers = dict(params=array_handler(), optimizer=array_handler(), data=DataHandler())
        self._manager = ocp.CheckpointManager(
            workdir.absolute() / "checkpoints", options=options, item_handlers=handlers
        )

    @property
    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, data: BatchIterator) -> None:
        """Begins to write a checkpoint; what is passed may be changed or donated as soon as this returns.

        Where the one before could not be written (a disk that was full meanwhile), this one is waited for: an error is
        raised where it cannot be, either.
        """
        lost = self._lost()
        items = dict(
            params=ocp.args.PyTreeSave(state.params),
            optimizer=ocp.args.PyTreeSave(dict(step=state.step, opt_state=state.opt_state)),
            data=DataItem(data),
        )
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        if lost:
            self._manager.wait_until_finished()

    def _lost(self) -> bool:
        """Waits for the checkpoint that is being written; says so where it could not be."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # noqa: BLE001 (whatever the file system's library raises)
            reason = " ".join(str(error).split())[:200]
            logging.warning("the last checkpoint could not be written, a newer one is tried: %s", reason)
            return True
        return False

    def restore(self, step: int, abstract: TrainState, data: BatchIterator) -> TrainState:
        """The state of a step in the shardings of `abstract`; sets the data iterator back to that moment."""
        items = dict(
            params=restore_args(abstract.params),
            optimizer=restore_args(dict(step=abstract.step, opt_state=abstract.opt_state)),
            data=DataItem(data),
        )
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, KeyError, FileNotFoundError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"checkpoint {step} in {self._manager.directory} is not one of this run: {reason}"
            ) from error
        return TrainState(restored.optimizer["step"], restored.params, restored.optimizer["opt_state"])

    def restore_params(self, step: int, abstract: dict) -> dict:
        """The parameters of a step alone."""
        args = ocp.args.Composite(params=restore_args(abstract))
        return self._manager.restore(step, args=args).params

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()


def latest_step(workdir: Path) -> int | None:
    """The step of the newest complete checkpoint, None without one; writes nothing."""
    if not (workdir / "checkpoints").is_dir():
        return None
    return max(ocp.utils.checkpoint_steps(workdir.absolute() / "checkpoints"), default=None)


def check_workdir(workdir: Path, config: str) -> None:
    """Refuses a directory that holds a run of another config (its JSON), naming what differs. Writes nothing."""
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"{workdir} is not a directory; choose another --workdir")
    if not (workdir / "config.json").exists():
        if (workdir / "checkpoints").exists():
            raise InputError(f"{workdir} holds checkpoints but no config.json of ours; choose another --workdir")
        return
    if latest_step(workdir) is None:  # a run that ended before its first checkpoint: nothing is lost
        return
    names = differing_keys(json.loads(config), read_json(workdir / "config.json"))
    if names:
        raise InputError(
            f"{workdir} holds a run with another config ({', '.join(names)} differ); choose another --workdir, or "
            f"change only {', '.join(RESUMABLE)} to continue it"
        )


def check_unchanged(workdir: Path, fingerprints: Mapping[str, str], spec: ModelSpec, tokenizer) -> None:
    """Refuses to go on with a run whose tokenizer is not the one that it began with, or what has a fingerprint."""
    before, directory = read_json(workdir / "model.json"), workdir / "tokenizer"  # older runs have not all of it
    changed = [f"config.objective.{name}" for name, own in fingerprints.items() if before.get(name) not in (None, own)]
    if directory.is_dir() and not reads_alike(tokenizer, load_tokenizer(directory, spec.vocab_size)):
        changed.append("the tokenizer")
    if changed:
        raise InputError(
            f"{workdir} holds a run since whose beginning {' and '.join(changed)} changed: put back what was there, or "
            "choose another --workdir"
        )


def write_workdir(
    workdir: Path, config: str, spec: ModelSpec, lora: Lora | None, fingerprints: Mapping[str, str] | None = None
) -> None:
    """config.json, the run's own; model.json, the model's config.json, adapters, and these fingerprints; tokenizer/.

    The last is what the run reads by. Process 0 writes them, and all see them when this returns.
    """
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        _write_tokenizer(workdir / "tokenizer", spec)
        model = dict(config=spec.to_hf(), source=spec.source, lora=dataclasses.asdict(lora) if lora else None)
        write_whole(workdir / "model.json", json.dumps(model | dict(fingerprints or {}), indent=2))
        write_whole(workdir / "config.json", config)
    check_shared(workdir / "config.json")


def trained_spec(workdir: Path) -> tuple[ModelSpec, Lora | None]:
    """What a work directory's checkpoints are of, and their adapters; reads none of them."""
    if not (workdir / "model.json").exists() or not (workdir / "checkpoints").is_dir():
        raise InputError(f"{workdir} is not the work directory of a training run (no model.json and checkpoints in it)")
    described, tokenizer = read_json(workdir / "model.json"), workdir / "tokenizer"
    source = str(tokenizer.absolute()) if tokenizer.is_dir() else described["source"]  # older runs keep none
    known = described.get("lora")  # nor say that they have no adapters
    lora = Lora(**known | {"targets": tuple(known.get("targets", ()))}) if known else None
    return ModelSpec.from_hf(described["config"], source=source), lora


def load_trained(
    workdir: str | Path, *, step: int | None = None, dtype: str = "float32", mesh: jax.sharding.Mesh | None = None
) -> Transformer:
    """The model of a work directory's newest (or a given) checkpoint; its weights are float32.

    Adapters are merged, but for those of noisy columns alone, which the model keeps.
    """
    workdir = Path(workdir)
    spec, lora = trained_spec(workdir)
    kept = lora if lora and lora.gated else None
    graphdef, _ = abstract_model(spec, dtype, mesh, lora=kept)
    _, abstract = abstract_model(spec, dtype, mesh, lora=lora)
    wanted, step = step, latest_step(workdir) if step is None else step
    if step is None or not (workdir / "checkpoints" / str(step)).is_dir():
        raise InputError(f"{workdir} holds no complete checkpoint{'' if wanted is None else f' of step {wanted}'}")
    checkpoints = Checkpoints(workdir, Saves(), read_only=True)
    try:
        params = checkpoints.restore_params(step, abstract)
        return nnx.merge(graphdef, params if kept else merge(params, lora))
    finally:
        checkpoints.close()


def abstract_model(
    spec: ModelSpec,
    dtype: str,
    mesh: jax.sharding.Mesh | None,
    tiles: Tiles | None = None,
    lora: Lora | None = None,
) -> tuple[nnx.GraphDef, dict]:
    """(graph definition, parameter tree of ShapeDtypeStructs with their shardings): nothing is allocated."""
    settings = dict(dtype=dtype, param_dtype="float32", tiles=tiles, lora=lora)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Transformer(spec, rngs=nnx.Rngs(0), **settings)))
    abstract = nnx.to_pure_dict(state)
    if mesh is None:
        shardings = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.local_devices()[0]), abstract)
    else:
        shardings = param_shardings(mesh, abstract)
    return graphdef, with_shardings(abstract, shardings)


def with_shardings(abstract, shardings):
    """A tree of ShapeDtypeStructs that carry shardings."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)


def _write_tokenizer(directory: Path, spec: ModelSpec) -> None:
    """Whole or not at all, in place of an older one."""
    temporary = directory.with_name(f"{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    copy_tokenizer(spec.source, temporary, spec.to_hf())
    shutil.rmtree(directory, ignore_errors=True)
    temporary.rename(directory)
