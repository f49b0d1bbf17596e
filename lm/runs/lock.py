"""Lock of a run directory: at most one process trains a run.

    with RunLock(folder):        # raises RunLocked if another process trains the run
        ...

A process that wants to train a run writes a lock file, lock-PID-RANDOM, into its folder and then
lists all lock files. If no other lock file exists, it has acquired the lock. Two processes that
write at the same time see each other's file, and at most one file remains. No lock of the
filesystem is used, so the method works on NFS and in a bucket.

The process rewrites its lock file as a heartbeat. A lock is dead if its process has ended on this
machine, or if it misses its heartbeats while another process watches it.
"""

import contextlib
import faulthandler
import json
import os
import random
import secrets
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

from lm.runs import filesystem

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
MAX_ATTEMPTS = 6  # to acquire a lock that another process is acquiring at the same time
EXIT_LOCK_LOST = 75  # exit status EX_TEMPFAIL: another process took the lock over


class RunLocked(ValueError):
    """Another process trains the run."""


class RunLock:
    """The lock of one run, with a heartbeat in a thread.

    Entering raises RunLocked if another process trains the run. If the lock file disappears, the
    process ends with status EXIT_LOCK_LOST. path: the lock file. n_replaced: number of lock files
    of dead processes that this lock has replaced. Only one lock replaces such a file.
    """

    def __init__(self, folder: str | Path):
        self.folder = filesystem.open_path(folder)
        self.path = self.folder / f"lock-{os.getpid()}-{secrets.token_hex(4)}"
        self.n_replaced = 0
        self._exited = threading.Event()

    def __enter__(self) -> "RunLock":
        self.n_replaced = _acquire(self.path)
        self._thread = threading.Thread(target=self._send_heartbeats, daemon=True, name="lock")
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._exited.set()
        self._thread.join(HEARTBEAT_SECONDS)  # the thread could write the lock file again
        _release(self.path)

    def _send_heartbeats(self) -> None:
        while not self._exited.wait(HEARTBEAT_SECONDS):
            try:
                self._renew()
            except OSError:
                pass  # the next write of the training loop raises the same error

    def _renew(self) -> None:
        """Write a heartbeat. End the process if its lock file has disappeared."""
        if not self.path.exists() and not self._exited.is_set():
            message = "its lock file is missing: another process took it over, or it was removed"
            exit_with_stacks(self.folder / "stalled.txt", EXIT_LOCK_LOST, message)
        filesystem.refresh_mtime(self.path, _lock_contents(held=True))


def is_alive(folder: str | Path) -> bool:
    """Return True if a process is training the run now, assuming that clocks agree."""
    return any(map(_is_recent, _lock_files(filesystem.open_path(folder))))


def exit_with_stacks(file: Path, status: int, message: str) -> None:
    """Write the stacks of all threads to a file and end the process with an exit status.

    The write runs in a thread, because a failing disk may block it. The process ends after
    HEARTBEAT_SECONDS at the latest.
    """
    message = f"{message}: ended with status {status}"
    print(f"{file.parent}: {message}; stacks are in {file.name}", file=sys.stderr, flush=True)
    writer = threading.Thread(target=_write_stacks, args=(file, message), daemon=True)
    writer.start()
    writer.join(HEARTBEAT_SECONDS)
    os._exit(status)


def _write_stacks(file: Path, message: str) -> None:
    with tempfile.TemporaryFile("w+") as stacks:
        faulthandler.dump_traceback(stacks)
        stacks.seek(0)
        try:
            filesystem.write_file(file, f"{message}\n{stacks.read()}")
        except OSError:
            pass  # the disk may be the reason for the exit


def _acquire(path: Path) -> int:
    """Acquire the lock with the lock file `path`. Return the number of dead locks it replaces.

    The lock is acquired once no other lock is alive. Of several processes that acquire it at the
    same time, only the first by file name retains its file. Raises RunLocked if another process
    has the lock, or after MAX_ATTEMPTS attempts.
    """
    for _ in range(MAX_ATTEMPTS):
        filesystem.write_file(path, _lock_contents(held=False))
        others = _other_lock_files(path)
        living = [other for other in others if _is_alive(other)]
        if not living:
            dead = [other for other in others if other.exists()]
            for other in dead:
                other.unlink(missing_ok=True)
            _remove_interrupted_writes(path.parent)
            filesystem.write_file(path, _lock_contents(held=True))
            return len(dead)
        if any(_read_owner(other).get("held", True) for other in living):
            break
        if path.name > min(living).name:
            _release(path)
        time.sleep(random.uniform(0.1, 0.5))
    else:
        living = _other_lock_files(path) or [path]
    _release(path)
    owner, age = _read_owner(living[0]), time.time() - _last_heartbeat(living[0])
    raise RunLocked(
        f"{path.parent} is being trained by process {owner.get('pid')} on"
        f" {owner.get('host')} (heartbeat {age:.0f} s ago): wait until it ends, or end it"
    )


def _lock_files(folder: Path) -> list[Path]:
    return sorted(path for path in filesystem.list_dir(folder) if path.name.startswith("lock-"))


def _other_lock_files(path: Path) -> list[Path]:
    return [other for other in _lock_files(path.parent) if other != path]


def _remove_interrupted_writes(folder: Path) -> None:
    """Remove the temporary files of lock files whose process was killed during a write."""
    for path in [] if filesystem.is_remote(folder) else folder.glob(".lock-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > filesystem.INTERRUPTED_SECONDS:
                path.unlink()


def _release(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        pass  # the disk became read-only: the lock expires without heartbeats


def _is_alive(path: Path) -> bool:
    """Return True if a lock is recent, or renewed during a wait.

    The wait is for clocks that differ between machines.
    """
    if _is_recent(path) or _is_of_this_machine(_read_owner(path)):
        return _is_recent(path)
    before, deadline = _last_heartbeat(path), time.monotonic() + 3 * HEARTBEAT_SECONDS
    while time.monotonic() < deadline:
        time.sleep(HEARTBEAT_SECONDS / 5)
        if _last_heartbeat(path) != before:
            return path.exists()
    return False


def _is_recent(path: Path) -> bool:
    """Return True if the process of a lock runs on this machine, or has sent a heartbeat lately."""
    owner = _read_owner(path)
    if _is_of_this_machine(owner):
        return (
            filesystem.is_process_alive(owner["pid"]) and _start_time(owner["pid"]) == owner["born"]
        )
    return abs(time.time() - _last_heartbeat(path)) <= STALE_SECONDS


def _lock_contents(held: bool) -> str:
    """Return the JSON of a lock file of this process.

    held: False while the process still acquires the lock.
    """
    pid = os.getpid()
    owner = {"host": socket.gethostname(), "machine": _machine_id()}
    owner |= {"pid": pid, "born": _start_time(pid)}
    return json.dumps(owner | {"held": held, "time": time.time()})


def _read_owner(path: Path) -> dict:
    """Return the contents of a lock file; {} if it is missing or damaged."""
    try:
        owner = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    is_owner = isinstance(owner, dict) and type(owner.get("pid")) is int and "born" in owner
    return owner if is_owner and isinstance(owner.get("time"), (int, float)) else {}


def _last_heartbeat(path: Path) -> float:
    """Return the time of the last heartbeat in seconds since 1970; 0 if there is none.

    The clock is that of the disk or, for a bucket, of the machine that wrote the heartbeat.
    """
    if filesystem.is_remote(path):
        return _read_owner(path).get("time", 0.0)
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _is_of_this_machine(owner: dict) -> bool:
    return owner.get("machine") == _machine_id()


def _machine_id() -> str:
    """Return an identifier of the current boot and its process table, in which a pid is unique.

    Host names are not enough: containers share them.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _start_time(pid: int) -> str:
    """Return the start of a process in ticks since boot, which detects a reused pid."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "dead" if fields[0] in "ZX" else fields[19]
