"""Several processes as one: how they find each other, and how they come to the same verdict.

    start("10.0.0.1:1234", processes=2, process=0)    before the first use of a device
    plan = first(make_plan)                           made by process 0, the same in all
    reason = worst(reason)                            what any of them complains of, in all

In one process all of this is there and does nothing. Only process 0 writes records (lm/records.py);
every verdict that changes what happens next is made once, or made from what all have said. What one
of them raises alone ends it, and by that the others: see `together`.
"""

import atexit
import collections
import contextlib
import json
import os
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm import guard, lifeline, records

HEARTBEAT_SECONDS = 30  # of silence, after which a process counts as lost
SIGNS = ("Gloo", "closed by peer", "onnection reset", "oordination service", "heartbeat")
LAG = 2  # steps after which a vote is read, when its step has ended: reading it stalls nothing


_lines: list[socket.socket] = []  # to the others: see lm/lifeline.py


class Place(NamedTuple):
    """This process among all."""

    coordinator: str  # host:port of process 0; "": as jax finds out from the cluster
    processes: int = 0
    process: int = 0
    devices: list[int] | None = None  # those of this machine that are its own; None: all


def start(coordinator: str = "", processes: int = 0, process: int = -1) -> None:
    """Joins the other processes, if there are any; before the first use of a device.

    ValueError where flags are missing or the others cannot be reached.
    """
    place = find(os.environ, coordinator, processes, process)
    if place is None:
        return
    # jax would take SIGTERM for itself; here a signal is a vote of lm/train.py.
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
        words = str(error).strip().partition("\n")[0][:200]
        where = place.coordinator or "the coordinator of this cluster"
        raise ValueError(f"--coordinator={where} was not reached: {words}") from None
    _hold_lines(place.coordinator.rpartition(":")[0] or socket.gethostname())
    sys.excepthook = _uncaught


def find(
    env: Mapping[str, str], coordinator: str = "", processes: int = 0, process: int = -1
) -> Place | None:
    """The place of this process by flags, or by what a cluster sets; None: it is alone.

    Kubernetes   the flags but --process, which is the index of the job's pod
    SLURM        srun with more than one task; several tasks on a node take a device each
    TPU          pod slices: what jax reads from the metadata. --coordinator=auto asks jax as well
                 elsewhere (Kubernetes by its API, MPI)
    """
    if coordinator == "auto":
        return Place("")
    if coordinator or processes or process >= 0:
        if process < 0:
            process = int(env.get("JOB_COMPLETION_INDEX", -1))
        if not re.fullmatch(r"[^\s:]+:\d+|\[[\da-fA-F:]+\]:\d+", coordinator):
            raise ValueError(f"--coordinator={coordinator} must be host:port of process 0, or auto")
        if not 0 <= process < processes:
            raise ValueError(
                f"--process={process} must be from 0 to --processes={processes} less one"
            )
        return Place(coordinator, processes, process) if processes > 1 else None
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return _slurm(env)
    if "," in env.get("TPU_WORKER_HOSTNAMES", "") or int(env.get("MEGASCALE_NUM_SLICES", 1)) > 1:
        return Place("")
    return None


def _slurm(env: Mapping[str, str]) -> Place:
    """Of a step of srun: process 0 is on its first node, at a port made of the job's number."""
    nodes = env["SLURM_STEP_NODELIST"]  # node7, node[001-015,17],other3 ...
    first = re.sub(r"^([^,\[]*)\[(\w+)[^\]]*\]([^,]*).*$", r"\1\2\3", nodes).partition(",")[0]
    port = 61_440 + int(env["SLURM_JOB_ID"]) % 4096
    tasks = re.findall(r"(?<!x)\b\d+", env.get("SLURM_STEP_TASKS_PER_NODE", "1"))  # 2(x3),1
    bound = "," not in env.get("CUDA_VISIBLE_DEVICES", ",")  # srun gave each its own already
    return Place(
        f"{first}:{port}",
        int(env["SLURM_STEP_NUM_TASKS"]),
        int(env["SLURM_PROCID"]),
        None if bound or max(map(int, tasks)) == 1 else [int(env["SLURM_LOCALID"])],
    )


def are_several() -> bool:
    """Whether there is more than this process."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def everyone(value) -> list:
    """What each process said, in their order; any JSON. All must call it, at the same place."""
    if not are_several():
        return [value]
    said = json.dumps(value).encode()
    lengths = _gathered(np.array([len(said)], np.int32))[:, 0]
    # Few lengths of rows, so that few programs are compiled.
    row = np.zeros(1 << max(10, int(lengths.max()).bit_length()), np.uint8)
    row[: len(said)] = np.frombuffer(said, np.uint8)
    words = zip(_gathered(row), lengths, strict=True)
    return [json.loads(row[:length].tobytes()) for row, length in words]


def first(make: Callable) -> Any:
    """What make() returns in process 0, in all (JSON); the others wait and do not call it.

    A ValueError or OSError is raised in all.
    """
    said: dict = {}
    error = None
    if is_first():
        try:
            said = {"value": make()}
        except (ValueError, OSError) as raised:
            said, error = {"error": str(raised)}, raised
    said = everyone(said)[0] if are_several() else said
    if error:
        raise error
    if "error" in said:
        raise ValueError(said["error"])
    return said["value"]


def worst(reason: str) -> str:
    """The first complaint of any process, in all; "" where none has one."""
    return next((one for one in everyone(reason) if one), "")


def check_same(what: str, value: str) -> None:
    """ValueError in all processes if one of them has another value."""
    values = everyone(value)
    for process, other in enumerate(values):
        if other != values[0]:
            raise ValueError(
                f"process {process} has another {what} than process 0, {other} in place of"
                f" {values[0]}: start all with the same command on the same files"
            )


def ballot(device_mesh: Mesh) -> Callable[[str], str]:
    """vote(name of a signal or "") -> one that any process voted for, LAG calls ago.

    The answer is the same in all at the same call. The vote rides behind the step on the devices
    and nothing waits for it. In one process the answer is the vote.
    """
    if not are_several():
        return lambda name: name
    split = NamedSharding(device_mesh, PartitionSpec(device_mesh.axis_names))
    highest = jax.jit(jnp.max, out_shardings=NamedSharding(device_mesh, PartitionSpec()))
    on_cpu = device_mesh.devices.flat[0].platform == "cpu"
    cast: collections.deque[jax.Array] = collections.deque()

    def vote(name: str) -> str:
        number = int(signal.Signals[name]) if name else 0
        cast.append(highest(_split(split, device_mesh.size, np.int32(number))))
        if on_cpu:
            cast[-1].block_until_ready()  # as steps are: see lm/train.py
        answer = int(cast.popleft()) if len(cast) > LAG else 0
        return signal.Signals(answer).name if answer else ""

    return vote


@contextlib.contextmanager
def together(folders: list[Path], *shared: type[BaseException]) -> Iterator[None]:
    """Within it, what one of several processes raises alone ends it at once, and so the others.

    folders: of the runs that it ends. shared: what all raise at the same place, and so may unwind.
    The rest must not: closing a checkpoint waits for the others, who wait for this one in a step.
    """
    try:
        yield
    except shared:
        raise
    except BaseException as error:
        if not are_several():
            raise
        status, words = _last_words(error)
        for folder in folders:
            writer = records.Writer(folder, is_first())
            writer.write_facts(status="lost" if status > 1 else "failed", reason=words)
        print(words, file=sys.stderr)
        _exit(status)


def register_exit_hook(hooks: list[Callable[[int], None]]) -> None:
    """Append `leave` to the functions that a failed command calls with its exit status."""
    hooks.append(leave)


def leave(status: int) -> None:
    """End one of several processes without waiting for the others.

    Return without an effect in a single process.
    """
    if not are_several():
        return
    lifeline.say_goodbye(_lines)
    _exit(status)


def _hold_lines(host: str) -> None:
    """So that all know at once when one dies."""
    server = lifeline.listen() if is_first() else None
    host, port = everyone([host, server.getsockname()[1]] if server else [])[0]
    try:
        if server:
            _lines.extend(lifeline.accept(server, jax.process_count() - 1))
        else:
            _lines.extend(lifeline.connect(host.strip("[]"), port))
    except OSError as error:
        return print(f"no line between processes ({error}): a lost one is noticed later")
    lifeline.hold(_lines, _me())
    atexit.register(lifeline.say_goodbye, _lines)


def _uncaught(*raised) -> None:
    """What no one caught ends this process, not only its main thread."""
    traceback.print_exception(*raised)
    _exit(1)


def _me() -> str:
    return f"process {jax.process_index()} of {jax.process_count()}"


def _exit(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    if is_first():
        time.sleep(1.0)  # with it goes the service by which the others, if they too end, do so well
    os._exit(status)


def _last_words(error: BaseException) -> tuple[int, str]:
    """Exit status, and what to say."""
    words = str(error).strip().partition("\n")[0][:200]
    me = _me()
    if isinstance(error, jax.errors.JaxRuntimeError) and any(sign in words for sign in SIGNS):
        return guard.LOST, f"{me} lost another one; the same command goes on ({words})"
    if isinstance(error, OSError):
        return 2, f"{me}: {words or type(error).__name__}"
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT, f"{me} was stopped at once"
    traceback.print_exception(error)
    return 1, f"{me}: {type(error).__name__}: {words}"


def _gathered(row: np.ndarray) -> np.ndarray:
    """The rows of all processes, stacked in their order: [processes, ...]."""
    # One device each, whatever number of them a process has.
    firsts = {device.process_index: device for device in reversed(jax.devices())}
    mesh = Mesh(np.array([firsts[process] for process in sorted(firsts)]), "processes")
    split = NamedSharding(mesh, PartitionSpec("processes"))
    copied = jax.jit(_same, out_shardings=NamedSharding(mesh, PartitionSpec()))
    with jax.set_mesh(mesh):
        return np.asarray(copied(_split(split, mesh.size, row)))


def _same(x: jax.Array) -> jax.Array:
    return x


def _split(split: NamedSharding, n: int, value: np.ndarray | np.integer) -> jax.Array:
    """An array [n, ...], a row a device, of which this process's hold `value`."""
    shape = (n, *np.shape(value))
    return jax.make_array_from_callback(shape, split, lambda _: np.asarray(value)[None])
