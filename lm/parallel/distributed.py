"""Detect the death of another process through an open TCP connection.

Process 0 listens and the other processes connect to it. The kernel closes the connections of a
killed process. Process 0 notices at once and ends itself, which ends all others. A process that
ends normally sends a byte before. A machine that loses power closes no connection: JAX's heartbeats
detect it, later.
"""

import atexit
import collections
import contextlib
import json
import os
import re
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm.runs import records

EXIT_PEER_DIED = 125  # exit status after another process of the same run was lost
BYE = b"."
SECONDS = 60  # timeout of a connection


def listen_for_peers() -> socket.socket:
    """Return a server at a free port of this machine."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def accept_peer(server: socket.socket, n: int) -> list[socket.socket]:
    """Accept the connections of n other processes."""
    server.settimeout(SECONDS)
    return [server.accept()[0] for _ in range(n)]


def connect_to_peer(host: str, port: int) -> list[socket.socket]:
    """Connect to process 0."""
    return [socket.create_connection((host, port), timeout=SECONDS)]


def watch_peers(lines: list[socket.socket], name: str) -> None:
    """Watch connections in a thread. One that breaks ends this process with status LOST.

    name: of this process, for the message.
    """
    selector = selectors.DefaultSelector()
    for line in lines:
        line.settimeout(None)
        selector.register(line, selectors.EVENT_READ)

    def watch() -> None:
        while selector.get_map():
            for key, _ in selector.select():
                if _received(key.fileobj) != BYE:
                    _end(name)
                selector.unregister(key.fileobj)

    threading.Thread(target=watch, daemon=True, name="lifeline").start()


def close_peer_connections(lines: list[socket.socket]) -> None:
    """Announce a normal end to the other processes."""
    for line in lines:
        try:
            line.sendall(BYE)
        except OSError:
            pass  # the other process has ended


def _received(line) -> bytes:
    try:
        return line.recv(1)
    except OSError:
        return b""


def _end(name: str) -> None:
    message = (
        f"{name}: another one was lost, ended with status {EXIT_PEER_DIED}; see its messages."
    )
    print(f"{message} Repeat the command to continue", file=sys.stderr, flush=True)
    os._exit(EXIT_PEER_DIED)


# MERGED DOCSTRING of lm.hosts:
# """Start several processes that train together, and let them agree on decisions.
#
#     start("10.0.0.1:1234", processes=2, process=0)    before the first use of a device
#     plan = first(make_plan)                           computed by process 0, returned in all
#     reason = worst(reason)                            the first error of any process, in all
#
# In a single process these functions have no effect. Process 0, the primary, writes the records
# (lm/runs/records.py). Each decision that changes the control flow is made by the primary, or from
# the
# values of all processes. An exception in one process ends it, and then the others: see `together`.
# """

HEARTBEAT_SECONDS = 30  # a process without a heartbeat for this time counts as lost
# JAX has one type for all runtime errors, so a lost process is recognized by the message.
SIGNS = ("Gloo", "closed by peer", "onnection reset", "oordination service", "heartbeat")
LAG = 2  # calls after which a vote is read: its step has ended by then, so no step waits


_lines: list[
    socket.socket
] = []  # connections to the other processes: see lm/parallel/distributed.py


class ProcessInfo(NamedTuple):
    """Index of this process, and how to reach the coordinator.

    coordinator: host:port of process 0; "" lets JAX ask the cluster. devices: local devices that
    belong to this process; None is all.
    """

    coordinator: str
    processes: int = 0
    process: int = 0
    devices: list[int] | None = None


def initialize_processes(coordinator: str = "", processes: int = 0, process: int = -1) -> None:
    """Join the other processes, if there are any. Call before the first use of a device.

    Raises ValueError if flags are missing or the coordinator cannot be reached.
    """
    place = find_processes(os.environ, coordinator, processes, process)
    if place is None:
        return
    # JAX would handle SIGTERM itself; lm/training/loop.py handles it by a vote (`ballot`).
    jax.config.update("jax_enable_preemption_service", False)
    known = {} if not place.coordinator else {
        "coordinator_address": place.coordinator,
        "num_processes": place.processes,
        "process_id": place.process,
        "local_device_ids": place.devices,
    }  # fmt: skip
    try:
        jax.distributed.initialize(**known, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError) as error:
        message = str(error).strip().partition("\n")[0][:200]
        address = place.coordinator or "the coordinator of this cluster"
        raise ValueError(f"--coordinator={address} was not reached: {message}") from None
    _hold_lines(place.coordinator.rpartition(":")[0] or socket.gethostname())
    sys.excepthook = _uncaught


def find_processes(
    env: Mapping[str, str], coordinator: str = "", processes: int = 0, process: int = -1
) -> ProcessInfo | None:
    """Return the place of this process by flags or environment; None for a single process.

    Kubernetes   the flags except --process, which is the index of the job's pod
    SLURM        srun with several tasks; several tasks on a node have one device each
    TPU          pod slices, from the metadata that JAX reads. --coordinator=auto uses JAX's
                 detection for other clusters too (Kubernetes by its API, MPI)
    """
    if coordinator == "auto":
        return ProcessInfo("")
    if coordinator or processes or process >= 0:
        if process < 0:
            process = int(env.get("JOB_COMPLETION_INDEX", -1))
        if not re.fullmatch(r"[^\s:]+:\d+|\[[\da-fA-F:]+\]:\d+", coordinator):
            raise ValueError(f"--coordinator={coordinator} must be host:port of process 0, or auto")
        if not 0 <= process < processes:
            raise ValueError(
                f"--process={process} must be from 0 to --processes={processes} less one"
            )
        return ProcessInfo(coordinator, processes, process) if processes > 1 else None
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return _slurm(env)
    if "," in env.get("TPU_WORKER_HOSTNAMES", "") or int(env.get("MEGASCALE_NUM_SLICES", 1)) > 1:
        return ProcessInfo("")
    return None


def _slurm(env: Mapping[str, str]) -> ProcessInfo:
    """Return the place in a step of srun. The port of process 0 follows from the job id."""
    nodes = env["SLURM_STEP_NODELIST"]  # node7, node[001-015,17],other3 ...
    first = re.sub(r"^([^,\[]*)\[(\w+)[^\]]*\]([^,]*).*$", r"\1\2\3", nodes).partition(",")[0]
    port = 61_440 + int(env["SLURM_JOB_ID"]) % 4096
    tasks = re.findall(r"(?<!x)\b\d+", env.get("SLURM_STEP_TASKS_PER_NODE", "1"))  # 2(x3),1
    bound = "," not in env.get("CUDA_VISIBLE_DEVICES", ",")  # srun has assigned one device each
    return ProcessInfo(
        f"{first}:{port}",
        int(env["SLURM_STEP_NUM_TASKS"]),
        int(env["SLURM_PROCID"]),
        None if bound or max(map(int, tasks)) == 1 else [int(env["SLURM_LOCALID"])],
    )


def is_multiprocess() -> bool:
    """Return True if more than one process trains together."""
    return jax.process_count() > 1


def is_primary() -> bool:
    """Return True in the primary, the process that writes."""
    return jax.process_index() == 0


def all_gather_objects(value) -> list:
    """Return the JSON values of all processes in order. All must call it at the same point."""
    if not is_multiprocess():
        return [value]
    encoded = json.dumps(value).encode()
    lengths = _gathered(np.array([len(encoded)], np.int32))[:, 0]
    # Lengths are powers of two, so that few programs are compiled.
    row = np.zeros(1 << max(10, int(lengths.max()).bit_length()), np.uint8)
    row[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    rows = zip(_gathered(row), lengths, strict=True)
    return [json.loads(row[:length].tobytes()) for row, length in rows]


def run_on_primary(make: Callable) -> Any:
    """Call make() in the primary and return its JSON value in all processes.

    A ValueError or OSError of make() is raised in all processes.
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
    """Return the first non-empty reason of any process in all; "" if there is none."""
    return next((text for text in all_gather_objects(reason) if text), "")


def check_equal_on_all(what: str, value: str) -> None:
    """Raise ValueError in all processes if their values differ. what: name of the value."""
    values = all_gather_objects(value)
    for process, other in enumerate(values):
        if other != values[0]:
            raise ValueError(
                f"process {process} has another {what} than process 0, {other} in place of"
                f" {values[0]}: start all with the same command on the same files"
            )


def signal_consensus(device_mesh: Mesh) -> Callable[[str], str]:
    """Return vote(signal name or "") -> the signal that any process passed LAG calls before.

    All processes get the same answer at the same call. The vote is a reduction on the devices that
    runs after the step, and no step waits for it. A single process gets its own vote.
    """
    if not is_multiprocess():
        return lambda name: name
    split = NamedSharding(device_mesh, PartitionSpec(device_mesh.axis_names))
    highest = jax.jit(jnp.max, out_shardings=NamedSharding(device_mesh, PartitionSpec()))
    on_cpu = device_mesh.devices.flat[0].platform == "cpu"
    cast: collections.deque[jax.Array] = collections.deque()

    def vote(name: str) -> str:
        number = int(signal.Signals[name]) if name else 0
        cast.append(highest(_split(split, device_mesh.size, np.int32(number))))
        if on_cpu:
            cast[-1].block_until_ready()  # for the reason given in lm/training/loop.py
        answer = int(cast.popleft()) if len(cast) > LAG else 0
        return signal.Signals(answer).name if answer else ""

    return vote


@contextlib.contextmanager
def fail_together(folders: list[Path], *shared: type[BaseException]) -> Iterator[None]:
    """End one of several processes at once if it raises an exception that the others do not.

    folders: of the runs that end. shared: exceptions that all processes raise at the same point.
    Other exceptions must not unwind the stack: closing a checkpoint would wait for the other
    processes, which wait for this one in a step.
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


def register_exit_hook(hooks: list[Callable[[int], None]]) -> None:
    """Append `leave` to the functions that a failed command calls with its exit status."""
    hooks.append(exit_process)


def exit_process(status: int) -> None:
    """End one of several processes without waiting for the others.

    Return without an effect in a single process.
    """
    if not is_multiprocess():
        return
    close_peer_connections(_lines)
    _exit(status)


def _hold_lines(host: str) -> None:
    """Connect to the primary, so that all processes notice at once when one dies."""
    server = listen_for_peers() if is_primary() else None
    host, port = all_gather_objects([host, server.getsockname()[1]] if server else [])[0]
    try:
        if server:
            _lines.extend(accept_peer(server, jax.process_count() - 1))
        else:
            _lines.extend(connect_to_peer(host.strip("[]"), port))
    except OSError as error:
        print(f"no connection between processes ({error}): a lost process is noticed later")
        return
    watch_peers(_lines, _process_name())
    atexit.register(close_peer_connections, _lines)


def _uncaught(*raised) -> None:
    """End the process after an uncaught exception, not only its main thread."""
    traceback.print_exception(*raised)
    _exit(1)


def _process_name() -> str:
    return f"process {jax.process_index()} of {jax.process_count()}"


def _exit(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    if is_primary():
        time.sleep(1.0)  # the other processes need the primary's service to end cleanly
    os._exit(status)


def _exit_status_and_message(error: BaseException) -> tuple[int, str]:
    message = str(error).strip().partition("\n")[0][:200]
    name = _process_name()
    if isinstance(error, jax.errors.JaxRuntimeError) and any(sign in message for sign in SIGNS):
        return (
            EXIT_PEER_DIED,
            f"{name} lost another one; repeat the command to continue ({message})",
        )
    if isinstance(error, OSError):
        return 2, f"{name}: {message or type(error).__name__}"
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT, f"{name} was stopped without saving"
    traceback.print_exception(error)
    return 1, f"{name}: {type(error).__name__}: {message}"


def _gathered(row: np.ndarray) -> np.ndarray:
    """Return the rows of all processes in order, [processes, ...]."""
    # The mesh has one device per process.
    firsts = {device.process_index: device for device in reversed(jax.devices())}
    mesh = Mesh(np.array([firsts[process] for process in sorted(firsts)]), "processes")
    split = NamedSharding(mesh, PartitionSpec("processes"))
    copied = jax.jit(_same, out_shardings=NamedSharding(mesh, PartitionSpec()))
    with jax.set_mesh(mesh):
        return np.asarray(copied(_split(split, mesh.size, row)))


def _same(x: jax.Array) -> jax.Array:
    return x


def _split(split: NamedSharding, n: int, value: np.ndarray | np.integer) -> jax.Array:
    """Return an array [n, ...] with one row per device; the rows of this process are `value`."""
    shape = (n, *np.shape(value))
    return jax.make_array_from_callback(shape, split, lambda _: np.asarray(value)[None])
