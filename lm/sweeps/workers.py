"""Train the pending runs of a sweep in several processes on this machine.

    devices = workers.count_devices()
    environments = workers.split_devices(devices, 2, os.environ)
    workers.run_local(command, environments, Path("runs/s/workers"), on_poll)

A worker is the command of the sweep with --worker (experiments/sweep.py). Any number of workers can
share one folder: each trains runs until no run is ready (launcher.run_pending). The next worker
replaces a worker that has died, on this machine or on another one.

The process that starts the workers uses no device itself: JAX reserves most of the memory of a GPU,
and one process at a time can use a TPU. `count_devices` counts them in a process that ends.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TextIO

import jax

from lm.parallel import distributed, mesh
from lm.runs import filesystem

POLL_SECONDS = 0.5
GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"
VISIBLE_VARIABLES = (
    "HIP_VISIBLE_DEVICES",
    GPU_VARIABLE,
    "TPU_VISIBLE_CHIPS",
    "TPU_VISIBLE_DEVICES",
)
# Bounds of the chips of one process, x,y,z, on a TPU host (jax/_src/test_multiprocess.py).
TPU_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}
XLA_DEVICE_COUNT = re.compile(r"--xla_force_host_platform_device_count=(\d+)")


class Devices(NamedTuple):
    """The devices of this machine. number: chips of a TPU, devices of another platform."""

    platform: str  # cpu, gpu or tpu
    number: int

    def __str__(self) -> str:
        return f"{self.number} {self.platform} device{'s' if self.number > 1 else ''}"


def count_devices() -> Devices:
    """Return the devices of this machine, counted in a process that ends.

    Raises ValueError if JAX finds no device, or no GPU although the environment assigns GPUs.
    """
    result = subprocess.run(
        [sys.executable, "-c", "from lm.sweeps import workers; workers.print_devices()"],
        capture_output=True,
        text=True,
    )
    if result.returncode:
        reason = result.stderr.strip().rpartition("\n")[2] or f"status {result.returncode}"
        raise ValueError(f"--jobs: JAX finds no devices: {reason}. Repair the driver or set --on.")
    devices = Devices(*json.loads(result.stdout.rpartition("\n\n")[2]))
    if devices.platform == "cpu":
        _check_no_gpu_assigned(os.environ)
    return devices


def print_devices() -> None:
    """Print the devices of this process as JSON, for `count_devices`."""
    mesh.initialize_devices()
    distributed.list_devices()
    devices = jax.local_devices()
    # Some TPU chips have two devices.
    n_chips = len({tuple(device.coords) for device in devices if device.platform == "tpu"})
    print("\n\n" + json.dumps([devices[0].platform, n_chips or len(devices)]))


def split_devices(
    devices: Devices, n_workers: int, environment: Mapping[str, str]
) -> list[dict[str, str]]:
    """Return environment variables that give each worker an equal share of the devices.

    environment: variables of this process, which may make only some devices visible. Devices that
    cannot be divided equally are not used. CPU devices follow from the share of the cores, unless
    the environment sets their number. Raises ValueError for more workers than GPUs or TPU chips.
    """
    if devices.platform == "cpu":
        return [_cpu_variables(n_workers, environment)] * n_workers
    if n_workers > devices.number:
        raise ValueError(
            f"--jobs={n_workers} exceeds the {devices} of this machine. Use at most"
            f" --jobs={devices.number}."
        )
    n_per_worker = devices.number // n_workers
    if devices.platform == "tpu":
        n_per_worker = max(n for n in TPU_BOUNDS if n <= n_per_worker)
    ids = _visible_ids(devices, environment)
    shares = [ids[i * n_per_worker :][:n_per_worker] for i in range(n_workers)]
    if devices.platform == "tpu":
        return _tpu_variables(shares) if n_workers > 1 else [{}]
    name = "HIP_VISIBLE_DEVICES" if environment.get("HIP_VISIBLE_DEVICES") else GPU_VARIABLE
    return [{name: ",".join(share)} for share in shares]


def check_devices(expected: Devices) -> None:
    """Raise ValueError if this process has another platform, or another number of GPUs.

    JAX uses the CPU without an error if a GPU does not exist.
    """
    variables = "".join(
        f" with {name}={os.environ[name]}"
        for name in ("JAX_PLATFORMS", *VISIBLE_VARIABLES)
        if os.environ.get(name)
    )
    try:
        devices = jax.devices()
        is_expected = devices[0].platform == expected.platform
        problem = f"finds {len(devices)} {devices[0].platform} devices"
        if expected.platform == "gpu":
            is_expected = is_expected and len(devices) == expected.number
    except (RuntimeError, AssertionError) as error:
        is_expected = False
        reason = (str(error).strip() or "no platform is available").splitlines()[0]
        problem = f"finds no device: {reason}"
    if not is_expected:
        raise ValueError(
            f"this worker needs {expected}, but JAX{variables} {problem}. Check the driver, the"
            " installation of JAX (uv sync --extra gpu) and these variables."
        )


def check_visible_devices() -> None:
    """Raise ValueError if this process runs on the CPU although a GPU is assigned to it."""
    if jax.default_backend() == "cpu":
        _check_no_gpu_assigned(os.environ)


def run_local(
    command: list[str],
    environments: list[dict[str, str]],
    log_folder: Path,
    on_poll: Callable[[], None],
) -> list[int]:
    """Run one worker process per environment until all have ended. Return their exit statuses.

    A status is 128 + N if signal N killed the worker.

    command: of one worker. environments: variables of each worker that differ from those of this
    process. Each worker has an equal share of the CPU cores. Worker i appends its output to
    log_folder/i.log. on_poll: called twice per second. A signal to this process is sent to each
    worker, and after an error of on_poll each worker receives SIGTERM: the workers save their runs
    and exit.
    """
    if filesystem.is_remote(log_folder):
        raise ValueError(
            f"dir={log_folder.parent}: --jobs cannot write the logs of its processes to a bucket:"
            " remove --jobs, or choose a local folder"
        )
    log_folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        workers = stack.enter_context(_forward_signals())
        for index in range(len(environments)):
            log = stack.enter_context(open(log_folder / f"{index}.log", "a", encoding="utf-8"))
            workers.start(command, index, environments, log)
        while alive := [worker for worker in workers.processes if worker.poll() is None]:
            on_poll()
            with contextlib.suppress(subprocess.TimeoutExpired):
                alive[0].wait(timeout=POLL_SECONDS)
    return [_exit_status(worker) for worker in workers.processes]


def run_planner(command: list[str], environments: list[dict[str, str]]) -> int:
    """Run a command with the devices and cores of the first worker. Return its exit status.

    The output of the command is that of this process. The status is 128 + N after signal N.
    """
    with _forward_signals() as workers:
        workers.start(command, 0, environments)
        workers.wait()
    return _exit_status(workers.processes[0])


def _exit_status(process: subprocess.Popen) -> int:
    """Return the exit status of a process that has ended, 128 + N after signal N."""
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


class _Workers:
    """Worker processes, and the last signal that was sent to them, 0 without a signal."""

    def __init__(self):
        self.processes: list[subprocess.Popen] = []
        self.signal_number = 0

    def start(
        self,
        command: list[str],
        index: int,
        environments: list[dict[str, str]],
        log: TextIO | None = None,
    ) -> None:
        """Start worker number `index`. log: file of its output, None for that of this process."""
        with _share_of_cores(index, len(environments)):
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=os.environ | environments[index],
                # A worker receives Ctrl-C from this process only, not from the terminal as well.
                start_new_session=True,
            )
        self.processes.append(process)
        if self.signal_number:  # the signal came before the worker
            process.send_signal(self.signal_number)

    def send(self, signal_number: int, frame=None) -> None:
        """Send a signal to each worker, also to those that start later."""
        self.signal_number = signal_number
        for process in self.processes:
            process.send_signal(signal_number)

    def terminate(self, signal_number: int = 0, frame=None) -> None:
        """Send SIGTERM, unless the workers stop already: a second signal would prevent the save."""
        if not self.signal_number:
            self.send(signal.SIGTERM)

    def wait(self) -> None:
        """Wait until all workers have ended."""
        for process in self.processes:
            process.wait()


@contextlib.contextmanager
def _forward_signals() -> Iterator[_Workers]:
    """Send the signals of this process to its workers. An exception terminates the workers.

    SIGINT, SIGTERM and SIGUSR1 are sent as they are. SIGHUP, the end of the terminal, becomes
    SIGTERM, with which a worker saves its run. nohup ignores SIGHUP, which is not changed.
    """
    workers = _Workers()
    handlers: dict[int, Callable] = dict.fromkeys(
        (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1), workers.send
    )
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        handlers[signal.SIGHUP] = workers.terminate
    with contextlib.ExitStack() as stack:
        for signal_number, handler in handlers.items():
            previous_handler = signal.signal(signal_number, handler)
            stack.callback(signal.signal, signal_number, previous_handler)
        try:
            yield workers
        except BaseException:
            workers.terminate()
            workers.wait()
            raise


def _visible_ids(devices: Devices, environment: Mapping[str, str]) -> list[str]:
    """Return the ids of the visible accelerators: indices, or UUIDs that the environment lists."""
    prefix = "TPU" if devices.platform == "tpu" else ("CUDA", "HIP")
    for name in VISIBLE_VARIABLES:
        ids = [item.strip() for item in environment.get(name, "").split(",") if item.strip()]
        if name.startswith(prefix) and len(ids) >= devices.number:
            return ids[: devices.number]
    return [str(index) for index in range(devices.number)]


def _check_no_gpu_assigned(environment: Mapping[str, str]) -> None:
    """Raise ValueError if the environment assigns GPUs to a process that has only the CPU.

    SLURM sets the variable for a job with GPUs. JAX_PLATFORMS=cpu selects the CPU on purpose.
    """
    ids = environment.get(GPU_VARIABLE, "")
    if ids not in ("", "-1", "NoDevFiles") and not environment.get("JAX_PLATFORMS"):
        raise ValueError(
            f"{GPU_VARIABLE}={ids}, but JAX finds no GPU. Correct it, repair the driver or the"
            " installation of JAX (uv sync --extra gpu), or set JAX_PLATFORMS=cpu."
        )


def _cpu_variables(n_workers: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the number of CPU devices of a worker, if the environment sets their number."""
    flag = XLA_DEVICE_COUNT.search(environment.get("XLA_FLAGS", ""))
    number = environment.get("JAX_NUM_CPU_DEVICES") or (flag and flag[1])
    return {"JAX_NUM_CPU_DEVICES": str(max(int(number) // n_workers, 1))} if number else {}


def _tpu_variables(shares: list[list[str]]) -> list[dict[str, str]]:
    """Return variables with which several processes of one host use different TPU chips.

    Each process is a slice of its own, with its own ports for libtpu.
    """
    ports = _free_ports(2 * len(shares))
    return [
        {
            "TPU_VISIBLE_CHIPS": ",".join(ids),
            "TPU_VISIBLE_DEVICES": ",".join(ids),  # the name in older versions of libtpu
            "TPU_CHIPS_PER_PROCESS_BOUNDS": TPU_BOUNDS[len(ids)],
            "TPU_PROCESS_BOUNDS": "1,1,1",
            "TPU_PROCESS_ADDRESSES": f"localhost:{port}",
            "TPU_PROCESS_PORT": str(port),
            "TPU_MESH_CONTROLLER_ADDRESS": f"localhost:{controller_port}",
            "TPU_MESH_CONTROLLER_PORT": str(controller_port),
            "CLOUD_TPU_TASK_ID": "0",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
        for ids, port, controller_port in zip(shares, ports[::2], ports[1::2], strict=True)
    ]


def _free_ports(number: int) -> list[int]:
    """Return different free ports of this machine."""
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(socket.create_server(("localhost", 0))) for _ in range(number)
        ]
        return [server.getsockname()[1] for server in servers]


@contextlib.contextmanager
def _share_of_cores(index: int, n_workers: int) -> Iterator[None]:
    """Restrict processes that are started in this context to an equal share of the CPU cores.

    The restriction must hold from the first instruction, because a process creates one CPU device
    per available core.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = sorted(os.sched_getaffinity(0))
    n_per_worker = max(len(cores) // n_workers, 1)
    os.sched_setaffinity(0, cores[index % len(cores) :: n_workers][:n_per_worker])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
