"""Train the pending runs of a sweep in several processes on this machine.

A worker is the command of the sweep with --worker (experiments/sweep.py). Any number of workers can
share one folder: each trains runs until no run is ready (launcher.run_pending). The next worker
replaces a worker that has died, on this machine or on another one.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

POLL_SECONDS = 0.5


def run_local(
    command: list[str], n_workers: int, log_folder: Path, on_poll: Callable[[], None]
) -> list[int]:
    """Run worker processes until all have ended. Return their exit statuses.

    command: of one worker. Each worker has an equal share of the CPU cores and one accelerator.
    Worker i appends its output to log_folder/i.log. on_poll: called twice per second. A signal to
    this process is sent to each worker: the workers save their runs and exit.
    """
    log_folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        workers = []
        for index in range(n_workers):
            log = stack.enter_context(open(log_folder / f"{index}.log", "a", encoding="utf-8"))
            workers.append(_start_worker(command, index, n_workers, log))
        stack.enter_context(_forward_signals(workers))
        while alive := [worker for worker in workers if worker.poll() is None]:
            on_poll()
            with contextlib.suppress(subprocess.TimeoutExpired):
                alive[0].wait(timeout=POLL_SECONDS)
        return [worker.returncode for worker in workers]


def _start_worker(command: list[str], index: int, n_workers: int, log: TextIO) -> subprocess.Popen:
    """Start the process of a worker. index: 0 to n_workers - 1."""
    with _share_of_cores(index, n_workers):
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | _visible_devices(index),
            # A worker receives Ctrl-C from this process only, and not from the terminal as well.
            start_new_session=True,
        )


@contextlib.contextmanager
def _forward_signals(workers: list[subprocess.Popen]) -> Iterator[None]:
    """Send SIGINT, SIGTERM and SIGUSR1 to the workers instead of this process."""

    def forward(signal_number: int, frame) -> None:
        for worker in workers:
            worker.send_signal(signal_number)

    with contextlib.ExitStack() as stack:
        for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            previous_handler = signal.signal(signal_number, forward)
            stack.callback(signal.signal, signal_number, previous_handler)
        yield


def _visible_devices(index: int) -> dict[str, str]:
    """Return environment variables that give a worker one accelerator visible to this process."""
    names = ("CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_DEVICES")
    visible = {name: os.environ.get(name, "").split(",") for name in names}
    return {
        name: devices[index % len(devices)] if devices[0] else str(index)
        for name, devices in visible.items()
    }


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
    os.sched_setaffinity(0, cores[index % len(cores) :: n_workers])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
