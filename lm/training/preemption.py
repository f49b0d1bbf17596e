"""Signals and the stall watchdog of a training process.

    with StallWatchdog(folder, 600.0) as watchdog, SignalHandler() as signals:
        with watchdog.long_call():              # its CPU time is progress
            compile_step()
        while working:
            signals.record_progress()
            watchdog.record_progress()
            if signals.stop:                    # name of a signal that requested a stop
                save_and_exit()

This file does not import JAX, so that commands can use its exceptions before they load JAX.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from lm.runs import filesystem, lock

CHECK_SECONDS = 5.0  # time between two checks of the watchdog
BUSY_SHARE = 0.02  # of a core, used by a process that works; idle threads use less
EXIT_STALLED = 124  # exit status after a stall, as of timeout(1)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(KeyboardInterrupt):
    """A signal stopped the training. signal_name: SIGINT, SIGTERM or SIGUSR1."""

    def __init__(self, message: str, signal_name: str):
        super().__init__(message)
        self.signal_name = signal_name


class SignalHandler:
    """Handler of SIGNALS while the context is open.

    stop: name of the signal that requested a stop, or "". The first signal sets `stop`, so that
    the training can save. A second signal, or a signal before the first progress, raises
    Interrupted at once. Outside the main thread the context has no effect.
    """

    def __init__(self):
        self.stop = ""
        self._has_progress = False
        self._previous_handlers = {}

    def __enter__(self) -> "SignalHandler":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def record_progress(self) -> None:
        """Record that a step was completed, so that there is progress to save."""
        self._has_progress = True

    def _handle(self, number: int, _) -> None:
        name = signal.Signals(number).name
        if self.stop or not self._has_progress:
            raise Interrupted(f"stopped by {name}, without saving", name)
        self.stop = name


class StallWatchdog:
    """Thread that ends the process with EXIT_STALLED after a time without progress.

    Progress is a call of `record_progress`. In a context of `long_call`, CPU time of the process is
    progress too: compilation and the restore of a checkpoint are single calls of any duration. A
    process that waits busily in such a context is not detected.

    stall_seconds: the limit; 0 disables the watchdog. process: index of this process among the
    processes that train the run. The stacks of all threads are written to stalled.txt in the
    folder, or to stalled-PROCESS.txt by processes other than 0. The runs of one program share a
    watchdog: its first context starts the thread, and the end of its last context stops it.
    """

    def __init__(self, folder: str | Path, stall_seconds: float, process: int = 0):
        name = f"stalled-{process}.txt" if process else "stalled.txt"
        self._stacks_file = filesystem.open_path(folder) / name
        self._stall_seconds = stall_seconds
        self._last_progress = time.monotonic()
        self._n_long_calls = 0
        self._n_contexts = 0
        self._thread: threading.Thread | None = None
        self._exited = threading.Event()

    def __enter__(self) -> "StallWatchdog":
        self._n_contexts += 1
        if self._stall_seconds and self._thread is None:
            self._thread = threading.Thread(target=self._watch, daemon=True, name="stall watchdog")
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._n_contexts -= 1
        if not self._n_contexts:
            self._exited.set()

    def record_progress(self) -> None:
        """Record that a step, or a batch of an evaluation, was completed now."""
        self._last_progress = time.monotonic()

    @contextlib.contextmanager
    def long_call(self) -> Iterator[None]:
        """Count CPU time of the process as progress inside the context. Contexts may be nested."""
        self._n_long_calls += 1
        self.record_progress()
        try:
            yield
        finally:
            self.record_progress()
            self._n_long_calls -= 1

    def _watch(self) -> None:
        wall, cpu = time.monotonic(), time.process_time()
        while not self._exited.wait(CHECK_SECONDS):
            old_wall, old_cpu = wall, cpu
            wall, cpu = time.monotonic(), time.process_time()
            is_busy = cpu - old_cpu > BUSY_SHARE * (wall - old_wall)
            if self._n_long_calls and is_busy:
                self.record_progress()
            if wall - self._last_progress > self._stall_seconds:
                message = f"no progress for {self._stall_seconds:g} seconds"
                lock.exit_with_stacks(self._stacks_file, EXIT_STALLED, message)
