"""The work directory: config.json, model.json, the tokenizer, and orbax checkpoints of parameters, optimizer and data.

Orbax writes a checkpoint under a temporary name and renames it when every process has finished, so that one killed
at any moment leaves the last complete one usable. Restoring goes onto the current mesh and processes, whatever mesh
and however many processes wrote it.
"""

import dataclasses
import gc
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from flax import nnx
from jax.sharding import Mesh

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
from edlm_jax.training.step import TrainState

_POLICY, _SHARD, _SIZES = ocp.checkpoint_managers, "shard_{}.json", "documents.json"


class _OneByOne(ocp.type_handlers.ArrayHandler):
    """Restores an array when the devices have taken the last one. By itself orbax reads up to 96 GB before that: on one
    device a model would be in memory twice. This leans on its insides, as seen with orbax-checkpoint 0.12.8."""

    async def deserialize(self, infos, args=None):
        arrays = []
        for info, arg in zip(infos, args, strict=True):
            arrays += jax.block_until_ready(await super().deserialize([info], [arg]))
            gc.collect(0)  # jax lets go of what was copied to a device when Python collects
        return arrays


def _array_handler() -> ocp.PyTreeCheckpointHandler:
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, _OneByOne()))
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def _restore_args(abstract) -> ocp.args.PyTreeRestore:
    """A tree of ShapeDtypeStructs, onto their shardings."""
    return ocp.args.PyTreeRestore(abstract, ocp.checkpoint_utils.construct_restore_args(abstract))


class _DataHandler(ocp.CheckpointHandler):
    """Orbax's way of saving a BatchIterator: a small file per shard, read back by whoever then reads that shard.

    Beside them stands how many documents each source had: the order of a corpus follows from that number.
    """

    def save(self, directory: Path, args: "_DataItem") -> None:
        """Processes that read the same shard write the same file."""
        for shard, state in args.item.get_state().items():
            (directory / _SHARD.format(shard)).write_text(json.dumps(state))
        (directory / _SIZES).write_text(json.dumps([tally.size for tally in args.item.tallies]))

    def restore(self, directory: Path, args: "_DataItem") -> BatchIterator:
        """The iterator that was passed, set back in place."""
        read = lambda shard: json.loads((directory / _SHARD.format(shard)).read_text())  # noqa: E731
        args.item.set_state({shard: read(shard) for shard in args.item.shards})
        return args.item


@ocp.args.register_with_handler(_DataHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class _DataItem(ocp.args.CheckpointArgs):
    """The iterator whose state is saved, or which is set back."""

    item: BatchIterator


def _items(arrays: Callable, state: TrainState, data: BatchIterator) -> ocp.args.Composite:
    optimizer = arrays(dict(step=state.step, opt_state=state.opt_state))
    return ocp.args.Composite(params=arrays(state.params), optimizer=optimizer, data=_DataItem(data))


@dataclasses.dataclass(frozen=True)
class Saves:
    """config.checkpoint, which says what its fields mean."""

    every: int = 0
    keep_last: int = 1
    keep_every: int = 0


class Checkpoints:
    """The checkpoints of one work directory; saving is asynchronous, `close` waits for it."""

    def __init__(self, workdir: Path, saves: Saves):
        policies = [_POLICY.LatestN(saves.keep_last)]
        policies += [_POLICY.EveryNSteps(saves.keep_every)] if saves.keep_every else []
        kept = _POLICY.AnyPreservationPolicy(policies)
        self._manager = ocp.CheckpointManager(
            workdir.absolute() / "checkpoints",
            item_handlers=dict(params=_array_handler(), optimizer=_array_handler(), data=_DataHandler()),
            options=ocp.CheckpointManagerOptions(preservation_policy=kept, cleanup_tmp_directories=True),
        )

    def save(self, step: int, state: TrainState, data: BatchIterator) -> None:
        """Begins to write a checkpoint, unless it is there; what is passed may be changed or donated afterwards.

        Where the one before could not be written (a disk that was full meanwhile), this one is waited for: an error is
        raised where it cannot be, either.
        """
        if step == self._manager.latest_step():
            return
        lost = None
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # noqa: BLE001 (whatever the file system's library raises)
            lost = " ".join(str(error).split())[:200]
            logging.warning("the last checkpoint could not be written, a newer one is tried: %s", lost)
        self._manager.save(step, args=_items(ocp.args.PyTreeSave, state, data), force=True)
        if lost is not None:
            self._manager.wait_until_finished()

    def restore(self, step: int, abstract: TrainState, data: BatchIterator) -> TrainState:
        """The state of a step in the shardings of `abstract`; sets the data iterator back to that moment."""
        try:
            restored = self._manager.restore(step, args=_items(_restore_args, abstract, data))
        except (ValueError, KeyError, FileNotFoundError) as error:
            where, reason = self._manager.directory, " ".join(str(error).split())[:200]
            raise InputError(f"checkpoint {step} in {where} is not one of this run: {reason}") from error
        return TrainState(restored.optimizer["step"], restored.params, restored.optimizer["opt_state"])

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.close()


def latest_step(workdir: Path) -> int | None:
    """The step of the newest complete checkpoint, None without one; writes nothing."""
    if not (workdir / "checkpoints").is_dir():
        return None
    return max(ocp.utils.checkpoint_steps(workdir.absolute() / "checkpoints"), default=None)


def check_workdir(workdir: Path, config: str) -> int | None:
    """The newest step of the run of this config (its JSON) in a directory; writes nothing.

    Refuses a run of another config, naming what differs, unless it ended before its first checkpoint: nothing is lost.
    """
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"{workdir} is not a directory; choose another --workdir")
    if (workdir / "checkpoints").exists() and not (workdir / "config.json").exists():
        raise InputError(f"{workdir} holds checkpoints but no config.json of ours; choose another --workdir")
    newest = latest_step(workdir)
    if newest is not None and (names := differing_keys(json.loads(config), read_json(workdir / "config.json"))):
        raise InputError(
            f"{workdir} holds a run with another config ({', '.join(names)} differ); choose another --workdir, or "
            f"change only {', '.join(RESUMABLE)} to continue it"
        )
    return newest


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


def check_sizes(checkpoint: Path, data: BatchIterator, sources: Sequence[Mapping[str, Any]]) -> None:
    """Refuses to go on from a checkpoint with sources that have grown or shrunk since."""
    path = checkpoint / "data" / _SIZES
    if not path.exists():  # written before sizes were
        return
    for source, before, tally in zip(sources, json.loads(path.read_text()), data.tallies, strict=True):
        if before != tally.size:
            raise InputError(
                f"{dict(source)} had {before:,} documents when {checkpoint} was written and has {tally.size:,} now: "
                "some would be seen twice and others never. Put it back as it was; or export what is trained (edlm "
                "export), and start another run from it with config.init.path and another --workdir"
            )


def write_workdir(
    workdir: Path, config: str, spec: ModelSpec, lora: Lora | None, fingerprints: Mapping[str, str] | None = None
) -> None:
    """config.json; model.json, with the model's config.json; tokenizer/. All see them when this returns."""
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
    workdir: str | Path, *, step: int | None = None, dtype: str = "float32", mesh: Mesh | None = None
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
    params = restore_params(workdir, step, abstract)
    return nnx.merge(graphdef, params if kept else merge(params, lora))


def restore_params(workdir: Path, step: int, abstract: dict) -> dict:
    """The parameters of a step alone; writes nothing."""
    with ocp.Checkpointer(_array_handler()) as reader:
        return reader.restore(workdir.absolute() / "checkpoints" / str(step) / "params", args=_restore_args(abstract))


def abstract_model(
    spec: ModelSpec, dtype: str, mesh: Mesh | None, tiles: Tiles | None = None, lora: Lora | None = None
) -> tuple[nnx.GraphDef, dict]:
    """(graph definition, parameter tree of float32 ShapeDtypeStructs with their shardings): nothing is allocated."""
    settings = dict(dtype=dtype, param_dtype="float32", tiles=tiles, lora=lora)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Transformer(spec, rngs=nnx.Rngs(0), **settings)))
    abstract = nnx.to_pure_dict(state)
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shardings = jax.tree.map(lambda _: one, abstract) if mesh is None else param_shardings(mesh, abstract)
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
