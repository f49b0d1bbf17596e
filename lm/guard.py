"""What watches over a run while it trains: one process at a time, signals, and a stall.

    with Guard(folder, stall_seconds=600) as guard:
        while working:
            guard.beat()                          # there was progress
            if guard.stop: save_and_leave()       # a signal asked for it: its name

The folder's lock file names the process; its age is the heartbeat. A lock whose process has died on
this machine, or whose heartbeat is older than STALE_SECONDS, is taken over.
"""

import faulthandler
import fcntl
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
STALLED = 124  # exit status of a process that made no progress, as of timeout(1)


LOST = 125  # exit status of a process whose run lost another of its processes


class Taken(ValueError):
    """Another process trains the run."""


class Guard:
    """A context manager; Taken on entry if another process trains the run."""

    def __init__(self, folder: str | Path, stall_seconds: float = 0.0, process: int = 0):
        self.process = process  # of several: the first holds the lock
        self.lock = Path(folder) / "lock"
        self.stall_seconds = stall_seconds
        self.stop = ""
        self._beaten = time.monotonic()
        self._left = threading.Event()
        self._handlers = {}

    def __enter__(self) -> "Guard":
        if not self.process:
            _take(self.lock)
        threading.Thread(target=self._watch, daemon=True, name="guard").start()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                self._handlers[number] = signal.signal(number, self._caught)
        return self

    def __exit__(self, *_) -> None:
        self._left.set()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if not self.process and _owner(self.lock) == _myself():
            self.lock.unlink(missing_ok=True)

    def beat(self) -> None:
        """Says that there was progress."""
        self._beaten = time.monotonic()

    def _caught(self, number, _) -> None:
        if self.stop:
            raise KeyboardInterrupt  # asked twice: at once, without saving
        self.stop = signal.Signals(number).name

    def _watch(self) -> None:
        while not self._left.wait(BEAT_SECONDS):
            try:
                if not self.process:
                    os.utime(self.lock)
            except OSError:
                pass  # a folder that cannot be written: the loop will say so
            if self.stall_seconds and time.monotonic() - self._beaten > self.stall_seconds:
                self._end_stalled()

    def _end_stalled(self) -> None:
        """Writes the stack of every thread beside the lock, and ends the process."""
        words = f"no progress for {self.stall_seconds:g} seconds: ended with status {STALLED}"
        name = f"stalled-{self.process}.txt" if self.process else "stalled.txt"
        with open(self.lock.with_name(name), "w") as file:
            print(words, file=file, flush=True)
            faulthandler.dump_traceback(file)
        print(f"{self.lock.parent}: {words}; stacks are in {name}", file=sys.stderr, flush=True)
        os._exit(STALLED)


def is_alive(folder: str | Path) -> bool:
    """Whether a process is training the run of this folder now."""
    lock = Path(folder) / "lock"
    owner = _owner(lock)
    try:
        age = time.time() - lock.stat().st_mtime
    except OSError:
        return False
    if age > STALE_SECONDS:
        return False
    return owner.get("host") != socket.gethostname() or _is_process(owner.get("pid", 0))


def _take(lock: Path) -> None:
    lock.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(lock.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # of two that find a stale lock, one looks again
        if is_alive(lock.parent):
            owner, age = _owner(lock), time.time() - lock.stat().st_mtime
            raise Taken(
                f"{lock.parent} is being trained by process {owner.get('pid')} on"
                f" {owner.get('host')} (heartbeat {age:.0f} s ago): wait for it, or end it"
            )
        lock.write_text(json.dumps(_myself()))
    finally:
        os.close(folder)


def _myself() -> dict:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _owner(lock: Path) -> dict:
    try:
        return json.loads(lock.read_text())
    except (OSError, ValueError):
        return {}


def _is_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0
