"""Runs of several processes: start, collective decisions, detection of dead processes.

    initialize_processes("10.0.0.1:1234", 2, 0)          # before the first use of a device
    plan = run_on_primary(make_plan)                     # computed by process 0, returned in all
    reason = first_error(reason)                         # the first error of any process, in all

In a single process these functions have no effect. Process 0, the primary, writes the records
(lm/runs/records.py). Each decision that changes the control flow is made by the primary, or from
the values of all processes. An exception in one process ends it, and then the others: see
`fail_together`.

A process that dies ends the others: see lm/parallel/peer_connections.py.
"""

import atexit
import collections
import contextlib
import functools
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm.parallel import cluster, device_memory, peer_connections
from lm.runs import records

EXIT_PEER_DIED = 125  # exit status after another process of the same run died
HEARTBEAT_SECONDS = 30  # a process without a heartbeat for this time is dead
# JAX has one type for all runtime errors, so only the message shows the death of a process.
PEER_ERROR_SIGNS = ("Gloo", "closed by peer", "onnection reset", "oordination service", "heartbeat")
# Calls after which a vote is read. Its step has ended by then, so no step waits for the vote.
VOTE_LAG = 2


# Connections of this process; `exit_process` has no other access to them.
_peers = peer_connections.PeerConnections()


def _connect_peers(host: str) -> None:
    """Connect to the primary at `host`, and watch the connections in a thread.

    Call in all processes at the same point. If the connection fails, print the reason; heartbeats
    still detect a dead process.
    """
    port = _peers.listen(jax.process_count() - 1) if is_primary() else 0
    port, _peers.token = all_gather_objects([port, _peers.token])[0]
    if not is_primary():
        try:
            _peers.connect(host.strip("[]"), port)
        except OSError as error:
            print(f"no connection between processes ({error}): a dead process is detected later")
            return
    name = _process_name()
    _peers.watch(lambda: _end_after_peer_death(name))
    atexit.register(_peers.announce_end)


def _end_after_peer_death(process_name: str) -> None:
    """Print a message and end this process at once."""
    message = f"{process_name}: another process died; see its messages."
    status = f"This process ends with status {EXIT_PEER_DIED}."
    print(f"{message} {status} Repeat the command to continue", file=sys.stderr, flush=True)
    os._exit(EXIT_PEER_DIED)


def initialize_processes(coordinator: str = "", n_processes: int = 0, process_id: int = -1) -> None:
    """Join the other processes, if there are any. Call before the first use of a device.

    Raises ValueError if arguments are missing or the coordinator cannot be reached.
    """
    info = cluster.find_processes(os.environ, coordinator, n_processes, process_id)
    if info is None:
        return
    # lm/training/loop.py handles SIGTERM, by `signal_consensus`.
    jax.config.update("jax_enable_preemption_service", False)
    known = {} if not info.coordinator else {
        "coordinator_address": info.coordinator,
        "num_processes": info.n_processes,
        "process_id": info.process_id,
        "local_device_ids": info.device_ids,
    }  # fmt: skip
    try:
        jax.distributed.initialize(**known, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError) as error:
        message = str(error).strip().partition("\n")[0][:200]
        address = info.coordinator or "the coordinator of this cluster"
        raise ValueError(f"--coordinator={address} cannot be reached: {message}") from None
    _connect_peers(info.coordinator.rpartition(":")[0] or socket.gethostname())
    gather_host_names()
    sys.excepthook = _exit_after_exception


def list_devices() -> list:
    """Return the devices of all processes. Call after `initialize_processes`.

    Raises ValueError if JAX finds no device of the platforms that JAX_PLATFORMS names.
    """
    try:
        with device_memory.limit_waiting_kernels():
            return jax.devices()
    except (RuntimeError, AssertionError) as error:  # an AssertionError has no message
        platforms = os.environ.get("JAX_PLATFORMS", "")
        reason = str(error).strip().partition("\n")[0][:200] or "no platform is available"
        raise ValueError(
            f"JAX_PLATFORMS={platforms}: JAX finds no device ({reason}). The platforms are cpu,"
            " cuda (uv sync --extra gpu) and tpu (uv sync --extra tpu): set JAX_PLATFORMS=cpu, or"
            " install the extra and check the driver"
        ) from None


def is_multiprocess() -> bool:
    """Return True if more than one process trains together."""
    return jax.process_count() > 1


def is_primary() -> bool:
    """Return True in the primary, the process that writes."""
    return jax.process_index() == 0


def all_gather_objects(value) -> list:
    """Return the JSON values of all processes in order. Call in all at the same point."""
    if not is_multiprocess():
        return [value]
    encoded = json.dumps(value).encode()
    lengths = _gather_rows(np.array([len(encoded)], np.int32))[:, 0]
    # Lengths are rounded up to powers of two, so that few programs are compiled.
    row = np.zeros(1 << max(10, int(lengths.max()).bit_length()), np.uint8)
    row[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    rows = zip(_gather_rows(row), lengths, strict=True)
    return [json.loads(row[:length].tobytes()) for row, length in rows]


@functools.cache
def gather_host_names() -> tuple[str, ...]:
    """Return the host name of each process in order. Call first in all at the same point."""
    return tuple(all_gather_objects(socket.gethostname()))


def run_on_primary(make: Callable) -> Any:
    """Call make() in the primary and return its JSON value in all processes.

    A ValueError or OSError of make() is raised in all processes, as ValueError in those without it.
    """
    result: dict = {}
    error = None
    if is_primary():
        try:
            result = {"value": make()}
        except (ValueError, OSError) as raised:
            result, error = {"error": str(raised)}, raised
    result = all_gather_objects(result)[0] if is_multiprocess() else result
    if error:
        raise error
    if "error" in result:
        raise ValueError(result["error"])
    return result["value"]


def first_error(reason: str) -> str:
    """Return in all processes the first non-empty reason of any process; "" if all are empty."""
    return next((text for text in all_gather_objects(reason) if text), "")


def check_equal_on_all(name: str, value: str) -> None:
    """Raise ValueError in all processes if their values differ. name: of the value."""
    values = all_gather_objects(value)
    for process, other in enumerate(values):
        if other != values[0]:
            raise ValueError(
                f"{name}={other} of process {process} differs from {name}={values[0]} of process"
                " 0: start all processes with the same command on the same files"
            )


def signal_consensus(device_mesh: Mesh) -> Callable[[str], str]:
    """Return vote(name), which returns the signal that any process passed VOTE_LAG calls before.

    name: name of a signal, "" for none. All processes get the same result at the same call. The
    vote is a reduction on the devices that runs after the step, and no step waits for it. In a
    single process, vote returns its argument.
    """
    if not is_multiprocess():
        return lambda name: name
    sharding = NamedSharding(device_mesh, PartitionSpec(device_mesh.axis_names))
    highest = jax.jit(jnp.max, out_shardings=NamedSharding(device_mesh, PartitionSpec()))
    on_cpu = device_mesh.devices.flat[0].platform == "cpu"
    pending: collections.deque[jax.Array] = collections.deque()

    def vote(name: str) -> str:
        number = int(signal.Signals[name]) if name else 0
        pending.append(highest(_row_per_device(sharding, device_mesh.size, np.int32(number))))
        if on_cpu:
            pending[-1].block_until_ready()  # lm/training/loop.py gives the reason
        agreed = int(pending.popleft()) if len(pending) > VOTE_LAG else 0
        return signal.Signals(agreed).name if agreed else ""

    return vote


@contextlib.contextmanager
def fail_together(folders: list[Path], *shared: type[BaseException]) -> Iterator[None]:
    """End this process at once if it alone of several processes raises an exception.

    folders: the run directories, in which the failure is recorded. shared: exceptions that all
    processes raise at the same point. Other exceptions must not unwind the stack: closing a
    checkpoint would wait for the other processes, which wait for this process in a step.
    """
    try:
        yield
    except shared:
        raise
    except BaseException as error:
        if not is_multiprocess():
            raise
        status, message = _exit_status_and_message(error)
        for folder in folders:
            writer = records.Writer(folder, is_primary())
            writer.write_facts(status="lost" if status > 1 else "failed", reason=message)
        print(message, file=sys.stderr)
        _exit(status)


def exit_process(status: int) -> None:
    """End one of several processes without waiting for the others.

    In a single process, return without an effect.
    """
    if not is_multiprocess():
        return
    _peers.announce_end()
    _exit(status)


def _exit_after_exception(*exception_info) -> None:
    """End the process after an uncaught exception, not only its main thread."""
    traceback.print_exception(*exception_info)
    _exit(1)


def _process_name() -> str:
    return f"process {jax.process_index()} of {jax.process_count()}"


def _exit(status: int) -> None:
    """End the process without waiting for other threads or processes."""
    sys.stdout.flush()
    sys.stderr.flush()
    if is_primary():
        time.sleep(1.0)  # the other processes need the coordinator to end cleanly
    os._exit(status)


def _exit_status_and_message(error: BaseException) -> tuple[int, str]:
    """Return the exit status and a one-line message; print the trace of an unexpected error."""
    message = str(error).strip().partition("\n")[0][:200]
    name = _process_name()
    is_jax_error = isinstance(error, jax.errors.JaxRuntimeError)
    if is_jax_error and any(sign in message for sign in PEER_ERROR_SIGNS):
        return (
            EXIT_PEER_DIED,
            f"{name}: another process died; repeat the command to continue ({message})",
        )
    if isinstance(error, OSError):
        return 2, f"{name}: {message or type(error).__name__}"
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT, f"{name} was stopped without saving"
    traceback.print_exception(error)
    return 1, f"{name}: {type(error).__name__}: {message}"


def _gather_rows(row: np.ndarray) -> np.ndarray:
    """Return the rows of all processes in order, [processes, ...]."""
    first_devices = {device.process_index: device for device in reversed(jax.devices())}
    devices = [first_devices[process] for process in sorted(first_devices)]
    mesh = Mesh(np.array(devices), "processes")
    sharding = NamedSharding(mesh, PartitionSpec("processes"))
    replicate = jax.jit(_identity, out_shardings=NamedSharding(mesh, PartitionSpec()))
    with jax.set_mesh(mesh):
        return np.asarray(replicate(_row_per_device(sharding, mesh.size, row)))


def _identity(x: jax.Array) -> jax.Array:
    return x  # a named function, so that jax.jit compiles it once


def _row_per_device(
    sharding: NamedSharding, n_devices: int, value: np.ndarray | np.integer
) -> jax.Array:
    """Return an array [devices, ...] with one row per device; the rows of this process: `value`."""
    shape = (n_devices, *np.shape(value))
    return jax.make_array_from_callback(shape, sharding, lambda _: np.asarray(value)[None])
