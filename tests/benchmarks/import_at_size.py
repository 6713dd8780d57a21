"""Host memory of importing a checkpoint of Qwen2.5-1.5B's shape onto 8 devices, and of restoring it on 4 and on 1.

    python -m tests.benchmarks.import_at_size [--json docs/benchmarks/import_at_size.json]

Writes random bfloat16 weights as sharded safetensors (3.1 GB) to a temporary directory, and what training saves of them
(6.2 GB of float32, no moments). Each measurement is a process of its own with CPU devices, whose memory is host memory:
the parameters themselves count once. What is asserted: the peak of the whole process, the interpreter included, stays
below 1.4 times the parameters plus the largest parameter; and what was read is bitwise what the files hold. Saving
afterwards is not measured; it copies the parameters, so that 16 GB of memory must be free.
"""

import argparse
import functools
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from configs.efficient_dlm_1p5b import QWEN2_5_1_5B
from tests.seeds import fresh_rng

FILE_BYTES = 500_000_000
ALLOWED = 1.4


def main() -> None:
    """Measure and print; `--json` also writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=QWEN2_5_1_5B["num_hidden_layers"], help="of the model (28)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    parser.add_argument("--measure", nargs=3, metavar=("WHAT", "DIRECTORY", "DEVICES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        what, directory, devices = args.measure
        print(json.dumps(measure(what, Path(directory), int(devices))))
        return
    result = run(args.layers)
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if not all(part["within"] for part in result["measurements"]):
        sys.exit("the peak is above what is allowed")


def run(layers: int) -> dict:
    """The three measurements, one process after the other."""
    from edlm_jax.reports.report import describe_machine

    with tempfile.TemporaryDirectory() as directory:
        files = write_checkpoint(Path(directory, "hf"), QWEN2_5_1_5B | dict(num_hidden_layers=layers))
        measurements = [in_a_process(*what, directory) for what in (("import", 8), ("restore", 4), ("restore", 1))]
    return {
        "what": "peak host memory of a process that reads a checkpoint onto CPU devices",
        "allowed": f"{ALLOWED} x parameters + largest parameter, interpreter and libraries included",
        "model": {"shape": "Qwen2.5-1.5B, random weights", "layers": layers, "files": files, "dtype": "float32"},
        "measurements": measurements,
        **describe_machine(),
        "command": " ".join(["python -m tests.benchmarks.import_at_size", *sys.argv[1:]]),
    }


def in_a_process(what: str, devices: int, directory: str) -> dict:
    """One measurement."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.import_at_size", "--measure", what, directory, str(devices)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)


def write_checkpoint(directory: Path, config: dict, file_bytes: int = FILE_BYTES) -> int:
    """Random bfloat16 weights as transformers would shard them; returns the number of files."""
    import ml_dtypes
    from safetensors.numpy import save_file

    from edlm_jax.models.spec import ModelSpec
    from edlm_jax.pretrained.checkpoint import INDEX
    from edlm_jax.pretrained.layout import places

    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    rng = fresh_rng()
    pool = (rng.standard_normal(2**24 + 1, np.float32) * 0.02).astype(ml_dtypes.bfloat16)
    files, used = [{}], 0
    for place in places(ModelSpec.from_hf(config)):
        for name in place.hf_names:
            size = math.prod(place.hf_shape)
            if used + 2 * size > file_bytes and files[-1]:
                files.append({})
                used = 0
            files[-1][name] = (int(rng.integers(len(pool))), place.hf_shape)
            used += 2 * size
    weight_map = {}
    for number, tensors in enumerate(files, start=1):
        file_name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        arrays = {name: np.resize(np.roll(pool, start), shape) for name, (start, shape) in tensors.items()}
        save_file(arrays, directory / file_name, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file_name)
    (directory / INDEX).write_text(json.dumps(dict(metadata={}, weight_map=weight_map)))
    return len(files)


def measure(what: str, directory: Path, devices: int) -> dict:
    """Reads the checkpoint onto a mesh of `devices`; the peak, what it may be, and whether the values are right."""
    import jax
    from flax import nnx

    from edlm_jax.parallel.mesh import Axes, make_mesh
    from edlm_jax.pretrained import load_pretrained
    from edlm_jax.training.checkpoint import load_trained

    mesh, start = make_mesh(Axes()), time.perf_counter()
    with Peak() as peak:
        if what == "import":
            model = load_pretrained(directory / "hf", dtype="float32", mesh=mesh)
        else:
            model = load_trained(directory / "run", mesh=mesh)
        params = jax.block_until_ready(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    seconds = time.perf_counter() - start
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(params)]
    allowed = ALLOWED * sum(sizes) + max(sizes)
    compare(params, model.spec, directory / "hf")
    if what == "import":
        save(directory / "run", model.spec, params)
    return {
        "what": what,
        "devices": devices,
        "parameters_gb": sum(sizes) / 1e9,
        "largest_gb": max(sizes) / 1e9,
        "peak_gb": peak.bytes / 1e9,
        "of_it_before_gb": peak.before / 1e9,
        "allowed_gb": allowed / 1e9,
        "within": peak.bytes < allowed,
        "seconds": seconds,
    }


class Peak:
    """The most memory that the process has held of its own (RssAnon, RssShmem), looked at every few milliseconds.

    Pages of mapped files are left out: they are the kernel's copy of the disk, dropped when somebody needs the room.
    """

    def __enter__(self) -> "Peak":
        self.before = self.bytes = self._now()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.bytes = max(self.bytes, self._now())

    @staticmethod
    def _now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssShmem")))


def compare(params: dict, spec, directory: Path) -> None:
    """One layer of every parameter against its tensor in the files."""
    from edlm_jax.pretrained.checkpoint import Checkpoint
    from edlm_jax.pretrained.layout import places

    with Checkpoint(directory) as checkpoint:
        for place in places(spec):
            param = functools.reduce(dict.__getitem__, place.path, params)
            layer = place.num_layers // 2
            ours = np.asarray(param[layer] if place.num_layers else param)
            theirs = place.read(checkpoint[place.hf_names[layer]], (slice(None),) * ours.ndim).astype(np.float32)
            assert np.array_equal(ours, theirs), f"{place.path} is not what the files hold"


def save(workdir: Path, spec, params: dict) -> None:
    """The checkpoint that a run would write, less the optimizer's moments and the data."""
    import jax.numpy as jnp

    from edlm_jax.data.shards import BatchIterator
    from edlm_jax.training.checkpoint import Checkpoints, Saves, write_workdir
    from edlm_jax.training.config import default_config, to_json
    from edlm_jax.training.step import TrainState

    write_workdir(workdir, to_json(default_config()), spec, None)
    checkpoints = Checkpoints(workdir, Saves())
    checkpoints.save(0, TrainState(jnp.int32(0), params, {}), BatchIterator({}, []))
    checkpoints.close()


if __name__ == "__main__":
    main()
