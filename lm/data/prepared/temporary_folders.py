"""Temporary folders of the cache, each with a lock that ends with its process.

    with temporary_folder(cache, "bpe-300-91c07d44e3b5") as folder:
        ...
        publish_folder(folder, cache / "bpe-300-91c07d44e3b5")
    folder, lock = lock_folder(cache, "wiki-0d6f2c81b9a4")     # a later call resumes in it

data/.bpe-300-91c07d44e3b5-0f3a99c1.tmp         folder of one process
data/.bpe-300-91c07d44e3b5-0f3a99c1.tmp.lock    its lock

A killed process leaves its folder behind. The next preparation in the cache deletes it, because the
operating system has released the lock.
"""

import contextlib
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import filelock

DAY_SECONDS = 86_400
STAGED_DAYS = 7  # An interrupted preparation that is not resumed for this time is deleted.
_TEMPORARY = re.compile(r"\..+-[0-9a-f]{8}\.tmp")
_STAGED = re.compile(r"\..+-[0-9a-f]{12}")
# Names in earlier versions, whose folders had no lock.
_UNLOCKED = re.compile(r"\.(?:.+-[0-9a-f]{12}|blocked)-[a-z0-9_]{8}")


@contextlib.contextmanager
def temporary_folder(cache: Path, name: str) -> Iterator[Path]:
    """Create a folder in the cache, and delete it at the end unless it was renamed."""
    folder, lock = _create_folder(cache, name)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        release_lock(lock)


def publish_folder(folder: Path, target: Path) -> bool:
    """Rename a complete temporary folder or file to its final path. Return False if that exists.

    An existing folder with files is not replaced: another process has published it first. Raises
    OSError if the path cannot be renamed for another reason.
    """
    try:
        folder.rename(target)
    except OSError:
        if not target.exists():
            raise
        return False
    return True


def lock_folder(cache: Path, name: str) -> tuple[Path, filelock.BaseFileLock | None, bool]:
    """Return the folder of a staged corpus, its lock, and True if a later call can resume in it.

    If another process has the lock, the folder is new and cannot be resumed. The lock is None if
    the file system has no locks. The operating system releases the lock when its process ends for
    any reason.
    """
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f".{name}"
    lock = _acquire_lock(folder)
    if lock is None:
        return *_create_folder(cache, name), False
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        release_lock(lock)
        raise
    return folder, lock, True


def release_lock(lock: filelock.BaseFileLock | None) -> None:
    """Delete the lock file and release the lock.

    The file is deleted first. A process that opens the path later creates a new file. A process
    that already opened it detects the deletion when it gets the lock (filelock checks this).
    """
    if lock is not None:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def remove_abandoned(cache: Path) -> None:
    """Delete the temporary folders of processes that have ended, and their lock files.

    A staged corpus is deleted after STAGED_DAYS. A folder without a lock file is deleted after a
    day: its file system has no locks, or an earlier version created it.
    """
    with contextlib.suppress(OSError):
        for path in sorted(cache.iterdir()):
            if not path.name.startswith("."):
                continue
            folder = path.with_suffix("") if path.suffix == ".lock" else path
            if min_age := _min_age(folder):
                remove_unused(folder, min_age)


def _min_age(folder: Path) -> float:
    """Return the age in seconds after which an unused folder is deleted; 0 for other names."""
    if _TEMPORARY.fullmatch(folder.name):
        return 1e-9 if _lock_path(folder).exists() else DAY_SECONDS
    if _UNLOCKED.fullmatch(folder.name):
        return DAY_SECONDS
    return STAGED_DAYS * DAY_SECONDS if _STAGED.fullmatch(folder.name) else 0.0


def remove_unused(folder: Path, min_age: float = 0.0) -> None:
    """Delete a hidden folder and its lock file, unless a process has the lock.

    min_age: seconds since the last change of its files before which it is not deleted.
    """
    if not folder.exists() and not _lock_path(folder).exists():
        return
    with contextlib.suppress(OSError):
        paths = [folder, *folder.iterdir()] if folder.exists() else []
        changed_at = max((path.stat().st_mtime for path in paths), default=0.0)
        if time.time() - changed_at < min_age:
            return
        lock = _acquire_lock(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            release_lock(lock)


def _create_folder(cache: Path, name: str) -> tuple[Path, filelock.BaseFileLock | None]:
    """Create a folder with a new name and lock it. Raises OSError if it cannot be created."""
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f".{name}-{secrets.token_hex(4)}.tmp"
    lock = _acquire_lock(folder)  # before the folder exists, so that no process deletes it
    try:
        folder.mkdir()
    except OSError:
        release_lock(lock)
        raise
    return folder, lock


def _lock_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _acquire_lock(folder: Path) -> filelock.BaseFileLock | None:
    """Return the acquired lock of a folder, None if it is taken or cannot exist."""
    lock = filelock.FileLock(_lock_path(folder), timeout=0)
    try:
        lock.acquire()
    except (OSError, NotImplementedError):
        return None
    return lock
