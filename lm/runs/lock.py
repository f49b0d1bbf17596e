"""Guard a run during training: a lock against other processes, signals, and a stall watchdog.

    with Guard(folder, stall_seconds=600) as guard:
        while working:
            guard.beat()                          # progress was made
            if guard.stop: save_and_exit()        # the name of a signal that asked for a stop

A process that wants to train a run writes a claim, lock-PID-RANDOM, into its folder and then lists
the claims. Without other claims it has the lock. Two simultaneous claims see each other, and at
most one remains. No lock of the filesystem is used, so this works on NFS and in a bucket. The age
of a claim is its heartbeat. A claim is dead if its process has ended on this machine, or if no
heartbeat comes while it is watched.
"""

import faulthandler
import json
import os
import random
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

from lm.runs import filesystem

BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
TRIES = 6  # attempts to claim a run that another process is claiming at the same time
# Exit statuses: no progress (as timeout(1)), claim lost to another process (EX_TEMPFAIL), and loss
# of another process of the same run.
EXIT_STALLED = 124
EXIT_LOCK_LOST = 75
EXIT_PEER_DIED = 125


class RunLocked(ValueError):
    """Another process trains the run."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped the training. signal_name: SIGINT, SIGTERM or SIGUSR1."""

    def __init__(self, message: str, signal_name: str):
        super().__init__(message)
        self.signal_name = signal_name


class Guard:
    """The guard of one run. Entering raises Taken if another process trains the run.

    process: index among the processes that train the run. Only process 0 claims it.
    stop: name of a signal that asked for a stop, or "".
    """

    def __init__(self, folder: str | Path, stall_seconds: float = 0.0, process: int = 0):
        self.process = process
        self.folder = filesystem.open_path(folder)
        self.claim = self.folder / f"lock-{os.getpid()}-{secrets.token_hex(4)}"
        self.stall_seconds = stall_seconds
        self.stop = ""
        self._has_progress = False
        self._last_beat = time.monotonic()
        self._exited = threading.Event()
        self._handlers = {}

    def __enter__(self) -> "Guard":
        if not self.process:
            _take(self.claim)
        self._thread = threading.Thread(target=self._watch, daemon=True, name="guard")
        self._thread.start()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                self._handlers[number] = signal.signal(number, self._caught)
        return self

    def __exit__(self, *_) -> None:
        self._exited.set()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._thread.join(BEAT_SECONDS)  # it could write the claim again
        if not self.process:
            _withdraw(self.claim)

    def beat(self) -> None:
        """Report progress. After the first progress a signal waits for a save."""
        self._has_progress, self._last_beat = True, time.monotonic()

    def _caught(self, number, _) -> None:
        name = signal.Signals(number).name
        if self.stop or not self._has_progress:
            # Second signal, or no completed step: stop without saving.
            raise Interrupted(f"stopped by {name}, without saving", name)
        self.stop = name

    def _watch(self) -> None:
        while not self._exited.wait(BEAT_SECONDS):
            try:
                if not self.process:
                    self._renew()
            except OSError:
                pass  # the next write of the loop raises the same error
            if self.stall_seconds and time.monotonic() - self._last_beat > self.stall_seconds:
                self._end(EXIT_STALLED, f"no progress for {self.stall_seconds:g} seconds")

    def _renew(self) -> None:
        """Write a heartbeat. End the process if its claim has disappeared."""
        if not self.claim.exists() and not self._exited.is_set():
            message = "its claim is missing: another process took it over, or it was removed"
            self._end(EXIT_LOCK_LOST, message)
        filesystem.refresh_mtime(self.claim, _claim_contents(held=True))

    def _stacks_file(self) -> str:
        return f"stalled-{self.process}.txt" if self.process else "stalled.txt"

    def _end(self, status: int, message: str) -> None:
        """Write all stacks to stalled.txt and end the process within seconds.

        The write has a thread of its own, because a failing disk may block it.
        """
        message = f"{message}: ended with status {status}"
        print(
            f"{self.folder}: {message}; stacks are in {self._stacks_file()}",
            file=sys.stderr,
            flush=True,
        )
        writer = threading.Thread(target=self._write_stacks, args=(message,), daemon=True)
        writer.start()
        writer.join(BEAT_SECONDS)
        os._exit(status)

    def _write_stacks(self, message: str) -> None:
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file)
            file.seek(0)
            try:
                filesystem.write_file(
                    self.folder / self._stacks_file(), f"{message}\n{file.read()}"
                )
            except OSError:
                pass  # the disk may be the reason for the stall


def is_alive(folder: str | Path) -> bool:
    """Return True if a process is training the run now, assuming that clocks agree."""
    return any(map(_looks_alive, _claims(filesystem.open_path(folder))))


def _take(claim: Path) -> None:
    """Acquire the lock. Raises Taken unless the claim is the only one, or first by name."""
    for _ in range(TRIES):
        filesystem.write_file(claim, _claim_contents(held=False))
        others = [other for other in _claims(claim.parent) if other != claim]
        living = [other for other in others if _is_alive(other)]
        if not living:
            for other in others:
                other.unlink(missing_ok=True)
            filesystem.write_file(claim, _claim_contents(held=True))
            return
        if any(_read(other).get("held", True) for other in living):
            break
        if claim.name > min(living).name:
            _withdraw(claim)
        time.sleep(random.uniform(0.1, 0.5))
    else:
        living = [other for other in _claims(claim.parent) if other != claim] or [claim]
    _withdraw(claim)
    owner, age = _read(living[0]), time.time() - _last_beat_of(living[0])
    raise RunLocked(
        f"{claim.parent} is being trained by process {owner.get('pid')} on"
        f" {owner.get('host')} (heartbeat {age:.0f} s ago): wait until it ends, or end it"
    )


def _claims(folder: Path) -> list[Path]:
    return sorted(path for path in filesystem.list_dir(folder) if path.name.startswith("lock-"))


def _withdraw(claim: Path) -> None:
    try:
        claim.unlink(missing_ok=True)
    except OSError:
        pass  # the disk became read-only: the claim expires


def _is_alive(claim: Path) -> bool:
    """Return True if a claim is recent, or renewed during a wait: clocks may differ."""
    if _looks_alive(claim) or _is_of_this_machine(_read(claim)):
        return _looks_alive(claim)
    before, end = _last_beat_of(claim), time.monotonic() + 3 * BEAT_SECONDS
    while time.monotonic() < end:
        time.sleep(BEAT_SECONDS / 5)
        if _last_beat_of(claim) != before:
            return claim.exists()
    return False


def _looks_alive(claim: Path) -> bool:
    owner = _read(claim)
    if _is_of_this_machine(owner):
        return _is_process(owner["pid"]) and _start_time(owner["pid"]) == owner["born"]
    return abs(time.time() - _last_beat_of(claim)) <= STALE_SECONDS


def _claim_contents(held: bool) -> str:
    pid = os.getpid()
    owner = {"host": socket.gethostname(), "machine": _machine()}
    owner |= {"pid": pid, "born": _start_time(pid)}
    return json.dumps(owner | {"held": held, "time": time.time()})


def _read(claim: Path) -> dict:
    try:
        return json.loads(claim.read_text())
    except (OSError, ValueError):
        return {}


def _last_beat_of(claim: Path) -> float:
    """Return the time of the last heartbeat by the clock of its machine or disk; 0 for none."""
    if filesystem.is_remote(claim):
        return _read(claim).get("time", 0.0)
    try:
        return claim.stat().st_mtime
    except OSError:
        return 0.0


def _is_of_this_machine(owner: dict) -> bool:
    return owner.get("machine") == _machine()


def _machine() -> str:
    """Return what identifies a boot and its table of processes, in which a pid is unique.

    Names of machines are not enough: containers share them.
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


def _is_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0
