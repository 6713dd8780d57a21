"""Many processes, one run: how they find each other, and what they say when they have.

On TPU pods and under Slurm's srun, jax finds the others by itself. Elsewhere three variables say it, as launch/local.sh
sets them: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES, JAX_PROCESS_ID. Without any of these
there is one process.
"""

import os
import socket
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from edlm_jax.errors import InputError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# No cluster; jax was in use before us. It has no other name for either (texts of jax 0.10.2).
_ALONE = ("coordinator_address should be defined", "must be called before")
_VISIBLE = 60.0  # seconds within which a shared file system shows a new file everywhere


def connect(timeout: float) -> int:
    """Joins the other processes of the run, if it has any; returns how many there are. Call it before jax is used.

    Raises InputError if they have not all come within `timeout` seconds, or the variables make no sense.
    """
    described = _described()
    failed: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(**described, initialization_timeout=24 * 3600)
        except Exception as error:
            alone = any(reason in str(error) for reason in _ALONE) and not os.environ.get(ADDRESS)
            if described or not alone:
                failed.append(error)

    thread = threading.Thread(target=initialize, daemon=True)
    # In a thread of its own, with more time than we give it: jax's own timeout ends the process with a stack trace.
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        who = f"process {os.environ[INDEX]} of {os.environ[COUNT]}" if described else "this process"
        where = os.environ.get(ADDRESS) or "found by jax"
        raise InputError(
            f"{who} waited {timeout:g} s for the others (coordinator {where}): start all of them with the same "
            "address, see that it can be reached, or wait longer with --wait"
        )
    if failed:
        raise InputError(f"the processes cannot join: {' '.join(str(failed[0]).split())}") from failed[0]
    return jax.process_count()


def _described() -> dict:
    """The arguments of jax.distributed.initialize that the environment gives, all or none."""
    given = [name for name in (COUNT, INDEX) if os.environ.get(name)]
    if not given:
        return {}
    missing = [name for name in (ADDRESS, COUNT, INDEX) if not os.environ.get(name)]
    if missing:
        raise InputError(f"{given[0]} is set but not {' and '.join(missing)}: set all three, or none for one process")
    address = os.environ[ADDRESS]
    try:
        count, index, port = int(os.environ[COUNT]), int(os.environ[INDEX]), int(address.rpartition(":")[2])
    except ValueError:
        raise InputError(f"{COUNT}, {INDEX} and the port of {ADDRESS} ({address}) must be numbers") from None
    if not 0 <= index < count:
        raise InputError(f"{INDEX}={index} is not one of the {count} processes 0..{count - 1}")
    if not 0 < port < 2**16:
        raise InputError(f"{ADDRESS} ({address}) must end in a port from 1 to 65535")
    if index == 0:
        try:
            socket.create_server(("", port)).close()
        except OSError as error:  # jax would crash
            raise InputError(f"port {port} of {ADDRESS} is not free: {error.strerror}; choose another") from None
    by_hand = dict(cluster_detection_method="deactivate")
    return dict(coordinator_address=address, num_processes=count, process_id=index) | by_hand


def announce(mesh: Mesh, shards: int) -> None:
    """One line of each process on stderr: which one it is, its devices, the mesh, whether others do its work."""
    here, kind = jax.local_device_count(), jax.devices()[0].device_kind
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    text = f"process {jax.process_index()} of {jax.process_count()}: {here} of {jax.device_count()} devices ({kind})"
    readers = -(-jax.process_count() // shards)
    shared = f"; config.data.shards={shards}: each document is tokenised by {readers} processes" if readers > 1 else ""
    print(f"{text}, mesh {axes}{shared}", file=sys.stderr, flush=True)


def agree(value: int, what: str) -> None:
    """Raises InputError in all processes unless `value` is the same in all of them."""
    values = multihost_utils.process_allgather(np.int32(value)).tolist()
    if len(set(values)) > 1:
        raise InputError(f"the processes do not share the work directory: {what}, by process: {values}")


def largest(value: int) -> int:
    """Of this process's value and the others'."""
    return int(multihost_utils.process_allgather(np.int32(value)).max())


def check_shared(path: Path) -> None:
    """Refuses, in all processes, a work directory in which not all of them see what process 0 has written."""
    multihost_utils.sync_global_devices("written by process 0")
    deadline = time.monotonic() + _VISIBLE
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    agree(path.exists(), f"{path} is there")
