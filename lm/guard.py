"""What watches over a run while it trains: one process at a time, signals, and a stall.

    with Guard(folder, stall_seconds=600) as guard:
        while working:
            guard.beat()                          # there was progress
            if guard.stop: save_and_leave()       # a signal asked for it: its name

Who would train a run writes a claim, lock-PID-RANDOM, into its folder, and then looks: alone, it
holds the run. Of two at once each sees the other, and one at most stays; no lock of the filesystem
is needed, so this holds on NFS and in a bucket too. The claim's age is the heartbeat. A claim is
dead if its process has ended on this machine, or if its heart does not beat while it is watched.
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

from lm import storage

BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
TRIES = 6  # at a run that another process is claiming as well
STALLED = 124  # exit status of a process that made no progress, as of timeout(1)
TAKEN_OVER = 75  # of one whose claim was found dead by another, as it slept: EX_TEMPFAIL
LOST = 125  # of a process whose run lost another of its processes


class Taken(ValueError):
    """Another process trains the run."""


class Guard:
    """A context manager; Taken on entry if another process trains the run."""

    def __init__(self, folder: str | Path, stall_seconds: float = 0.0, process: int = 0):
        self.process = process  # of several that train the run: the first claims it
        self.folder = storage.at(folder)
        self.claim = self.folder / f"lock-{os.getpid()}-{secrets.token_hex(4)}"
        self.stall_seconds = stall_seconds
        self.stop = ""
        self._begun = False
        self._beaten = time.monotonic()
        self._left = threading.Event()
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
        self._left.set()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._thread.join(BEAT_SECONDS)  # else it may write the claim once more
        if not self.process:
            _withdraw(self.claim)

    def beat(self) -> None:
        """Says that there was progress: from the first on, a signal waits for a save."""
        self._begun, self._beaten = True, time.monotonic()

    def _caught(self, number, _) -> None:
        name = signal.Signals(number).name
        if self.stop or not self._begun:  # asked twice, or nothing to save yet: at once
            raise KeyboardInterrupt(f"stopped by {name}, without saving")
        self.stop = name

    def _watch(self) -> None:
        while not self._left.wait(BEAT_SECONDS):
            try:
                if not self.process:
                    self._hold()
            except OSError:
                pass  # a folder that cannot be written: the loop will say so
            if self.stall_seconds and time.monotonic() - self._beaten > self.stall_seconds:
                self._end(STALLED, f"no progress for {self.stall_seconds:g} seconds")

    def _hold(self) -> None:
        if not self.claim.exists() and not self._left.is_set():
            words = "its claim is gone: another process took it over, or it was removed"
            self._end(TAKEN_OVER, words)
        storage.touch(self.claim, _said(held=True))

    def _stacks(self) -> str:
        return f"stalled-{self.process}.txt" if self.process else "stalled.txt"

    def _end(self, status: int, words: str) -> None:
        """Ends the process, its stacks in stalled.txt; within seconds, whatever the disk does."""
        words = f"{words}: ended with status {status}"
        print(
            f"{self.folder}: {words}; stacks are in {self._stacks()}", file=sys.stderr, flush=True
        )
        last = threading.Thread(target=self._write_stacks, args=(words,), daemon=True)
        last.start()
        last.join(BEAT_SECONDS)
        os._exit(status)

    def _write_stacks(self, words: str) -> None:
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file)
            file.seek(0)
            try:
                storage.write(self.folder / self._stacks(), f"{words}\n{file.read()}")
            except OSError:
                pass  # the disk may be why


def is_alive(folder: str | Path) -> bool:
    """Whether a process is training the run of this folder now, as far as clocks agree."""
    return any(map(_looks_alive, _claims(storage.at(folder))))


def _take(claim: Path) -> None:
    """Taken unless the claim is alone, or the first of those that are made at once."""
    for _ in range(TRIES):
        storage.write(claim, _said(held=False))
        others = [other for other in _claims(claim.parent) if other != claim]
        living = [other for other in others if _is_alive(other)]
        if not living:
            for other in others:
                other.unlink(missing_ok=True)
            storage.write(claim, _said(held=True))
            return
        if any(_read(other).get("held", True) for other in living):
            break
        if claim.name > min(living).name:
            _withdraw(claim)
        time.sleep(random.uniform(0.1, 0.5))
    else:
        living = [other for other in _claims(claim.parent) if other != claim] or [claim]
    _withdraw(claim)
    owner, age = _read(living[0]), time.time() - _beaten_at(living[0])
    raise Taken(
        f"{claim.parent} is being trained by process {owner.get('pid')} on"
        f" {owner.get('host')} (heartbeat {age:.0f} s ago): wait for it, or end it"
    )


def _claims(folder: Path) -> list[Path]:
    return sorted(path for path in storage.listed(folder) if path.name.startswith("lock-"))


def _withdraw(claim: Path) -> None:
    try:
        claim.unlink(missing_ok=True)
    except OSError:
        pass  # a disk that is read-only now: it is stale soon


def _is_alive(claim: Path) -> bool:
    """Looks alive, or beats while it is watched: another machine's clock may be wrong."""
    if _looks_alive(claim) or _is_here(_read(claim)):
        return _looks_alive(claim)
    before, end = _beaten_at(claim), time.monotonic() + 3 * BEAT_SECONDS
    while time.monotonic() < end:
        time.sleep(BEAT_SECONDS / 5)
        if _beaten_at(claim) != before:
            return claim.exists()
    return False


def _looks_alive(claim: Path) -> bool:
    owner = _read(claim)
    if _is_here(owner):
        return _is_process(owner["pid"]) and _born(owner["pid"]) == owner["born"]
    return abs(time.time() - _beaten_at(claim)) <= STALE_SECONDS


def _said(held: bool) -> str:
    pid = os.getpid()
    who = {"host": socket.gethostname(), "machine": _machine(), "pid": pid, "born": _born(pid)}
    return json.dumps(who | {"held": held, "time": time.time()})


def _read(claim: Path) -> dict:
    try:
        return json.loads(claim.read_text())
    except (OSError, ValueError):
        return {}


def _beaten_at(claim: Path) -> float:
    """When the claim's heart last beat, by the clock of its machine, or of its disk's; 0: never."""
    if storage.is_remote(claim):
        return _read(claim).get("time", 0.0)
    try:
        return claim.stat().st_mtime
    except OSError:
        return 0.0


def _is_here(owner: dict) -> bool:
    return owner.get("machine") == _machine()


def _machine() -> str:
    """Of one boot of one kernel and one table of processes: where equal, a pid means the same.

    Names of machines do not: containers share them.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _born(pid: int) -> str:
    """When a process began, in ticks since boot, so that its number given again is no mistake."""
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
